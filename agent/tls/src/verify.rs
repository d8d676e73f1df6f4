//! Verifies that a peer is a workload of a trust domain that we know, and the one that we expect.
//!
//! A chain is judged in this order: the shape of its leaf ([`Svid::read`]); the list of denied
//! identities; the roots of the trust domain that its identity names, and no others; RFC 5280 path
//! validation by webpki at the injected time; the shape of the authorities on the path (X509-SVID
//! section 3.2); revocation lists.

mod handshake;

use std::cell::Cell;

use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_spiffe::{SpiffeId, TrustDomain};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

pub(crate) use self::handshake::{ClientVerifier, ServerVerifier};
use crate::{
    provider::provider,
    revocation::Withdrawn,
    roots::{DomainRoots, TrustBundle},
    svid::{self, Svid, SvidError},
};

/// More certificates than any path has.
pub(crate) const MAX_CHAIN: usize = 16;
/// The most that the certificates of a chain may take together, in bytes: enough for a path of RSA keys of
/// 4096 bits. A chain is kept with each connection, and comes back in each ticket.
pub(crate) const MAX_CHAIN_LENGTH: usize = 12 * 1024;

/// Why a peer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The leaf is not an X.509-SVID of a workload.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// More was presented than any path needs.
    #[error(
        "{certificates} certificates of {bytes} bytes were presented; at most {MAX_CHAIN} of \
         {MAX_CHAIN_LENGTH} bytes together are accepted"
    )]
    TooMuch {
        /// How many.
        certificates: usize,
        /// How long they are together, as DER.
        bytes: usize,
    },
    /// The identity belongs to a trust domain that is neither ours nor federated with us.
    #[error("{id} is not of trust domain {local}, nor of one that is federated with it")]
    ForeignDomain {
        /// Who the peer says it is.
        id: SpiffeId,
        /// Our trust domain.
        local: TrustDomain,
    },
    /// Path validation failed: expired, unknown issuer, wrong purpose, bad signature.
    #[error("the certificate of {id} is not acceptable at {} (Unix time): {source}", at.as_secs())]
    Path {
        /// Who the peer says it is.
        id: SpiffeId,
        /// The time at which it was judged.
        at: UnixTime,
        /// What webpki found.
        source: webpki::Error,
    },
    /// An authority on the path may not vouch for this identity.
    #[error("the certificate of {id} was issued through an authority that {fault}")]
    Authority {
        /// Who the peer says it is.
        id: SpiffeId,
        /// What is wrong with the authority.
        fault: &'static str,
    },
    /// The operator denies the identity.
    #[error("{id} is on the list of denied identities")]
    Denied {
        /// Who the peer says it is.
        id: SpiffeId,
    },
    /// An authority has revoked a certificate on the path.
    #[error("the certificate of {id} is revoked: its issuer lists number {serial}")]
    Revoked {
        /// Who the peer says it is.
        id: SpiffeId,
        /// The serial number that is listed: that of the leaf or of an authority above it.
        serial: String,
    },
    /// Policy demands a current revocation list, and there is none.
    #[error("it is not known whether the certificate of {id} is revoked: {reason}")]
    Unknown {
        /// Who the peer says it is.
        id: SpiffeId,
        /// Why it is not known.
        reason: String,
    },
    /// The server is a workload, but not the one that was dialled.
    #[error("the server is {presented}, which is not the workload that was dialled")]
    Unexpected {
        /// Who the server is.
        presented: SpiffeId,
    },
}

/// Which end of the connection the peer is. Decides the extended key usage that the peer needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// The peer dialled us.
    Client,
    /// We dialled the peer.
    Server,
}

/// The result of a verification that succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) svid: Svid,
    /// Between which moments every certificate of its path is valid, the root's included. What else was
    /// presented does not count.
    pub(crate) valid: (UnixTime, UnixTime),
}

/// Judges the chain that a peer in `role` presented, leaf first, at time `now`.
pub fn verify_chain(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    role: PeerRole,
    now: UnixTime,
) -> Result<Svid, VerifyError> {
    Ok(verify_path(bundle, chain, role, now)?.svid)
}

/// As [`verify_chain`], with what follows from the path that was found.
pub(crate) fn verify_path(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    role: PeerRole,
    now: UnixTime,
) -> Result<Verified, VerifyError> {
    let (leaf, intermediates) = chain.split_first().ok_or(SvidError::Missing)?;
    verify(bundle, leaf, intermediates, role, now)
}

/// Does what [`verify_chain`] does, for a peer whose role is no longer known: either role suffices.
pub(crate) fn verify_in_any_role(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<Verified, VerifyError> {
    match verify_path(bundle, chain, PeerRole::Server, now) {
        Err(VerifyError::Path { source: webpki::Error::RequiredEkuNotFoundContext(_), .. }) => {
            verify_path(bundle, chain, PeerRole::Client, now)
        }
        other => other,
    }
}

fn verify(
    bundle: &TrustBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: PeerRole,
    now: UnixTime,
) -> Result<Verified, VerifyError> {
    let certificates = 1 + intermediates.len();
    let bytes = intermediates.iter().fold(leaf.len(), |sum, certificate| sum + certificate.len());
    if certificates > MAX_CHAIN || bytes > MAX_CHAIN_LENGTH {
        return Err(VerifyError::TooMuch { certificates, bytes });
    }
    let svid = Svid::read(leaf)?;
    if bundle.revocations().denied().denies(&svid.id) {
        return Err(VerifyError::Denied { id: svid.id });
    }
    let Some(roots) = bundle.domain(svid.id.trust_domain()) else {
        return Err(VerifyError::ForeignDomain { id: svid.id, local: bundle.local().clone() });
    };
    let usage = match role {
        PeerRole::Client => KeyUsage::client_auth(),
        PeerRole::Server => KeyUsage::server_auth(),
    };
    // webpki tries other paths after a refused one, so the last reason is kept aside.
    let fault = Cell::new(None);
    let valid = Cell::new((svid.not_before, svid.not_after));
    let judge = |path: &VerifiedPath<'_>| {
        let outcome = check_authorities(path, &svid, roots, now)
            .map_err(Fault::Authority)
            .and_then(|dates| check_revocation(path, bundle, roots, now).map(|()| dates));
        match outcome {
            Ok(dates) => {
                valid.set(dates);
                Ok(())
            }
            Err(reason) => {
                fault.set(Some(reason));
                Err(webpki::Error::UnknownIssuer)
            }
        }
    };
    let refused = |source| VerifyError::Path { id: svid.id.clone(), at: now, source };
    let certificate = EndEntityCert::try_from(leaf).map_err(refused)?;
    let algorithms = provider().signature_verification_algorithms;
    let path = certificate.verify_for_usage(
        algorithms.all,
        &roots.anchors,
        intermediates,
        now,
        usage,
        None,
        Some(&judge),
    );
    match (path, fault.take()) {
        (Ok(_), _) => {}
        (Err(_), Some(fault)) => return Err(fault.of(svid.id)),
        (Err(source), None) => return Err(refused(source)),
    }
    let valid = valid.get();
    Ok(Verified { svid, valid })
}

/// Checks what X509-SVID section 3.2 demands of the authorities of a path beyond RFC 5280, and
/// returns between which moments all certificates of it are valid.
fn check_authorities(
    path: &VerifiedPath<'_>,
    leaf: &Svid,
    roots: &DomainRoots,
    now: UnixTime,
) -> Result<(UnixTime, UnixTime), &'static str> {
    let Some((first, last)) = roots.validity(path.anchor(), now) else {
        return Err("is a root outside its own period of validity");
    };
    let (mut first, mut last) = (first.max(leaf.not_before), last.min(leaf.not_after));
    for (distance, authority) in path.intermediate_certificates().enumerate() {
        let der = authority.der();
        let unreadable = |_: SvidError| "cannot be read, or holds several URI names";
        let certificate = svid::parse(&der).map_err(unreadable)?;
        if svid::may_sign(&certificate).map_err(unreadable)? != Some(true) {
            return Err("may not sign certificates (keyCertSign)");
        }
        if let Some(uri) = svid::only_uri(&certificate).map_err(unreadable)? {
            check_authority_name(uri, (distance == 0).then(|| leaf.id.trust_domain()))?;
        }
        let validity = certificate.validity();
        first = first.max(svid::unix(validity.not_before));
        last = last.min(svid::unix(validity.not_after));
    }
    Ok((first, last))
}

/// Checks that no certificate of a path was revoked by the authority above it.
fn check_revocation(
    path: &VerifiedPath<'_>,
    bundle: &TrustBundle,
    roots: &DomainRoots,
    now: UnixTime,
) -> Result<(), Fault> {
    let authorities = path.intermediate_certificates().map(webpki::Cert::der);
    let root = roots.certificate(path.anchor()).cloned();
    let issuers: Vec<_> = authorities.chain(root).collect();
    let links = std::iter::once(&**path.end_entity()).chain(path.intermediate_certificates());
    for (certificate, issuer) in links.zip(&issuers) {
        bundle.revocations().check(certificate, issuer, now).map_err(Fault::Withdrawn)?;
    }
    Ok(())
}

/// Checks an authority's URI. If it is a SPIFFE identity, it must have no path. The authority that
/// issued the leaf must also be of the leaf's trust domain; one higher up need not be.
fn check_authority_name(uri: &str, leaf_domain: Option<&str>) -> Result<(), &'static str> {
    if !uri.starts_with("spiffe:") {
        return Ok(());
    }
    let Ok(id) = uri.parse::<SpiffeId>() else {
        return Err("bears a malformed SPIFFE identity");
    };
    if !id.path().is_empty() {
        return Err("bears a workload's identity");
    }
    match leaf_domain {
        Some(domain) if domain != id.trust_domain() => Err("belongs to another trust domain"),
        _ => Ok(()),
    }
}

/// Why a path that webpki would accept is refused.
enum Fault {
    Authority(&'static str),
    Withdrawn(Withdrawn),
}

// === impl Fault ===

impl Fault {
    fn of(self, id: SpiffeId) -> VerifyError {
        match self {
            Self::Authority(fault) => VerifyError::Authority { id, fault },
            Self::Withdrawn(Withdrawn::Revoked { serial }) => VerifyError::Revoked { id, serial },
            Self::Withdrawn(Withdrawn::Unknown { reason }) => VerifyError::Unknown { id, reason },
        }
    }
}

#[cfg(test)]
mod tests;
