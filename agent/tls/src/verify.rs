//! Verification of a peer: an X.509-SVID of a trust domain we know, of the workload we expect.
//!
//! A certificate is judged in this order: the shape of its leaf ([`Svid::read`]); the roots of the
//! trust domain that its identity names, and no others; RFC 5280 path validation by webpki at the
//! injected time; the shape of the authorities on the path (X509-SVID section 3.2).

use std::{cell::Cell, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sluice_spiffe::{SpiffeId, TrustDomain};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::{
    expected,
    provider::provider,
    revocation::Withdrawn,
    roots::{DomainRoots, TrustBundle},
    session::Sessions,
    svid::{self, Svid, SvidError},
};

/// Why a peer is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The leaf is not an X.509-SVID of a workload.
    #[error(transparent)]
    Svid(#[from] SvidError),
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
        /// The time that was used.
        at: UnixTime,
        /// What webpki found.
        source: webpki::Error,
    },
    /// A certificate on the path is not one that may vouch for this identity.
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
    /// An authority took a certificate of the path back.
    #[error("the certificate of {id} is revoked: its issuer lists number {serial}")]
    Revoked {
        /// Who the peer says it is.
        id: SpiffeId,
        /// The serial number that is listed: the leaf's, or an authority's above it.
        serial: String,
    },
    /// Policy demands a current revocation list, and there is none.
    #[error("it is not known whether the certificate of {id} is revoked: {reason}")]
    Unknown {
        /// Who the peer says it is.
        id: SpiffeId,
        /// Why not.
        reason: String,
    },
    /// The server is a workload, but not the one that was dialled.
    #[error("the server is {presented}, which is not the workload that was dialled")]
    Unexpected {
        /// Who the server is.
        presented: SpiffeId,
    },
}

/// Which end of the connection the peer is; decides the extended key usage that it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// The peer dialled us.
    Client,
    /// We dialled the peer.
    Server,
}

/// A peer that was believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verified {
    pub(crate) svid: Svid,
    /// When the first certificate of its path expires.
    pub(crate) until: UnixTime,
}

/// Judges servers for one identity's client connections.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    bundle: Arc<TrustBundle>,
    sessions: Arc<Sessions>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Judges clients for one identity's server connections.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    bundle: Arc<TrustBundle>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Judges the chain that a peer in `role` presented, leaf first, at time `now`.
pub fn verify_chain(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    role: PeerRole,
    now: UnixTime,
) -> Result<Svid, VerifyError> {
    let (leaf, intermediates) = chain.split_first().ok_or(SvidError::Missing)?;
    Ok(verify(bundle, leaf, intermediates, role, now)?.svid)
}

/// As [`verify_chain`] for a peer whose role is no longer known: it must be fit for one of them.
pub(crate) fn verify_in_any_role(
    bundle: &TrustBundle,
    chain: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<SpiffeId, VerifyError> {
    let as_server = verify_chain(bundle, chain, PeerRole::Server, now);
    let svid = match as_server {
        Err(VerifyError::Path { source: webpki::Error::RequiredEkuNotFoundContext(_), .. }) => {
            verify_chain(bundle, chain, PeerRole::Client, now)?
        }
        other => other?,
    };
    Ok(svid.id)
}

pub(crate) fn verify(
    bundle: &TrustBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: PeerRole,
    now: UnixTime,
) -> Result<Verified, VerifyError> {
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
    // Path building goes on after a refused path, so the reason for the last one is kept aside.
    let fault = Cell::new(None);
    let until = Cell::new(svid.not_after);
    let judge = |path: &VerifiedPath<'_>| {
        let outcome = check_authorities(path, &svid, roots, now)
            .map_err(Fault::Authority)
            .and_then(|earliest| check_revocation(path, bundle, roots, now).map(|()| earliest));
        match outcome {
            Ok(earliest) => {
                until.set(earliest);
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
    let until = until.get();
    Ok(Verified { svid, until })
}

/// Checks what X509-SVID section 3.2 demands of the authorities of a path beyond RFC 5280, and
/// returns when the first certificate of it expires.
fn check_authorities(
    path: &VerifiedPath<'_>,
    leaf: &Svid,
    roots: &DomainRoots,
    now: UnixTime,
) -> Result<UnixTime, &'static str> {
    let Some(root_until) = roots.valid_until(path.anchor(), now) else {
        return Err("is a root outside its own period of validity");
    };
    let mut until = leaf.not_after.min(root_until);
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
        until = until.min(svid::unix(certificate.validity().not_after));
    }
    Ok(until)
}

/// Asks for each certificate of a path whether the authority above it took it back.
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

/// An authority may bear a SPIFFE identity: then one without a path, and the one that issues leaves
/// is of the leaves' trust domain. (An authority may sign an authority of another domain.)
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

// === impl VerifyError ===

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        // `Other` keeps our words; the peer is told `certificate_unknown`.
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

// === impl ServerVerifier ===

impl ServerVerifier {
    pub(crate) fn new(bundle: Arc<TrustBundle>, sessions: Arc<Sessions>) -> Self {
        Self { bundle, sessions, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = verify(&self.bundle, end_entity, intermediates, PeerRole::Server, now)?;
        if !expected::is_name_of(server_name, &verified.svid.id) {
            return Err(VerifyError::Unexpected { presented: verified.svid.id }.into());
        }
        self.sessions.server_verified(server_name, verified.until);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

// === impl ClientVerifier ===

impl ClientVerifier {
    pub(crate) fn new(bundle: Arc<TrustBundle>) -> Self {
        Self { bundle, algorithms: provider().signature_verification_algorithms }
    }
}

impl ClientCertVerifier for ClientVerifier {
    /// None: an agent has one certificate per identity and needs no hint which to choose.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify(&self.bundle, end_entity, intermediates, PeerRole::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn only_tls13() -> Error {
    Error::General("a TLS 1.2 signature was asked for, but only TLS 1.3 is spoken".to_owned())
}

#[cfg(test)]
mod tests;
