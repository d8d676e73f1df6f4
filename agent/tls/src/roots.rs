//! Trust bundles: which roots speak for which trust domain.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::Arc,
};

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime, pem::PemObject};
use sluice_spiffe::TrustDomain;

use crate::{
    revocation::Revocations,
    svid::{self, SvidError},
};

/// Why a certificate cannot be a root.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootError {
    /// No root was given. Without roots nobody could be verified; this error says so at once rather than at every
    /// handshake.
    #[error("there is no root certificate for trust domain {0}: give at least one")]
    Empty(TrustDomain),
    /// The certificate cannot be read.
    #[error("a root certificate of trust domain {domain} is not usable: {source}")]
    Encoding {
        /// The trust domain it was given for.
        domain: TrustDomain,
        /// What is wrong with it.
        source: SvidError,
    },
    /// The certificate cannot be a trust anchor.
    #[error("a root certificate of trust domain {domain} is not usable: {source}")]
    Anchor {
        /// The trust domain it was given for.
        domain: TrustDomain,
        /// What is wrong with it.
        source: webpki::Error,
    },
    /// The certificate belongs to somebody who may not sign others.
    #[error(
        "{subject:?} was given as a root of trust domain {domain}, but is not a CA certificate"
    )]
    NotAuthority {
        /// The trust domain it was given for.
        domain: TrustDomain,
        /// Whose certificate it is.
        subject: String,
    },
    /// The PEM text around the certificates is damaged.
    #[error("the PEM text is damaged: {0}")]
    Pem(#[source] io::Error),
}

/// The roots against which the local trust domain and each federated one are verified.
///
/// The roots of one trust domain never vouch for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustBundle {
    local: TrustDomain,
    domains: BTreeMap<TrustDomain, DomainRoots>,
    /// Those of `domains` that not every local identity believes.
    offered: BTreeSet<TrustDomain>,
    revocations: Revocations,
}

/// The roots of one trust domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DomainRoots {
    /// Sorted, so that the same set in another order is the same bundle.
    certificates: Vec<CertificateDer<'static>>,
    /// The trust anchors of `certificates`, in the same order.
    pub(crate) anchors: Vec<TrustAnchor<'static>>,
    dates: Vec<(UnixTime, UnixTime)>,
}

/// Reads every certificate of a PEM text.
pub fn certificates_of_pem(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, RootError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| RootError::Pem(io::Error::other(error.to_string())))
}

// === impl TrustBundle ===

impl TrustBundle {
    /// Creates a bundle for `local` alone. Several roots at once allow a root to be rotated.
    pub fn new(
        local: TrustDomain,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, RootError> {
        let own = DomainRoots::new(&local, roots)?;
        Ok(Self::of_local(local, own))
    }

    /// Creates a bundle that accepts nobody, for as long as the roots of `local` are not known.
    pub fn without_roots(local: TrustDomain) -> Self {
        let none = DomainRoots { certificates: vec![], anchors: vec![], dates: vec![] };
        Self::of_local(local, none)
    }

    fn of_local(local: TrustDomain, own: DomainRoots) -> Self {
        let domains = BTreeMap::from([(local.clone(), own)]);
        Self { domains, local, offered: BTreeSet::new(), revocations: Revocations::default() }
    }

    /// Accepts the workloads of `domain` too, if `roots` vouch for them.
    pub fn federated(
        mut self,
        domain: TrustDomain,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, RootError> {
        let roots = DomainRoots::new(&domain, roots)?;
        self.offered.remove(&domain);
        self.domains.insert(domain, roots);
        Ok(self)
    }

    /// As [`Self::federated`], for those local identities alone whose authority says that they federate with
    /// `domain`; see [`crate::Issued::Made`].
    pub fn offered(
        self,
        domain: TrustDomain,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, RootError> {
        let mut bundle = self.federated(domain.clone(), roots)?;
        bundle.offered.insert(domain);
        Ok(bundle)
    }

    /// Whether an identity that federates with `named` believes workloads of `domain`, if roots vouch for
    /// them.
    pub(crate) fn is_for(&self, named: &BTreeSet<TrustDomain>, domain: &str) -> bool {
        let is_named = |names: &BTreeSet<TrustDomain>| names.iter().any(|of| of.as_str() == domain);
        !is_named(&self.offered) || is_named(named)
    }

    /// What an identity that federates with `named` believes.
    pub(crate) fn narrowed(self: &Arc<Self>, named: &BTreeSet<TrustDomain>) -> Arc<Self> {
        if self.offered.is_subset(named) {
            return Arc::clone(self);
        }
        let mut bundle = Self::clone(self);
        bundle.domains.retain(|domain, _| self.is_for(named, domain.as_str()));
        Arc::new(bundle)
    }

    /// Takes belief away from whoever is revoked or denied.
    #[must_use]
    pub fn without(mut self, revocations: Revocations) -> Self {
        self.revocations = revocations;
        self
    }

    /// Returns who is revoked or denied.
    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Returns the trust domain of this agent's own workloads.
    pub fn local(&self) -> &TrustDomain {
        &self.local
    }

    /// Returns the known trust domains: the local one and the federated ones.
    pub fn domains(&self) -> impl Iterator<Item = &TrustDomain> {
        self.domains.keys()
    }

    /// Returns the roots of `domain`; none if it is neither local nor federated.
    pub fn roots(&self, domain: &TrustDomain) -> &[CertificateDer<'static>] {
        self.domains.get(domain).map_or(&[], |roots| &roots.certificates)
    }

    /// Returns the earliest expiry of any root.
    pub fn first_expiry(&self) -> Option<UnixTime> {
        let dates = self.domains.values().flat_map(|roots| &roots.dates);
        dates.map(|(_, not_after)| *not_after).min()
    }

    pub(crate) fn domain(&self, domain: &str) -> Option<&DomainRoots> {
        self.domains.iter().find(|(name, _)| name.as_str() == domain).map(|(_, roots)| roots)
    }
}

// === impl DomainRoots ===

impl DomainRoots {
    fn new(
        domain: &TrustDomain,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, RootError> {
        let mut certificates: Vec<_> = roots.into_iter().collect();
        certificates.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        certificates.dedup();
        if certificates.is_empty() {
            return Err(RootError::Empty(domain.clone()));
        }
        let mut anchors = Vec::with_capacity(certificates.len());
        let mut dates = Vec::with_capacity(certificates.len());
        for root in &certificates {
            dates.push(check_authority(domain, root)?);
            let anchor = webpki::anchor_from_trusted_cert(root)
                .map_err(|source| RootError::Anchor { domain: domain.clone(), source })?;
            anchors.push(anchor.to_owned());
        }
        Ok(Self { certificates, anchors, dates })
    }

    /// Between which moments a root equal to `anchor` is valid, if it is at `now`. RFC 5280 leaves an
    /// anchor's own dates to the verifier; an expired root that still verifies would outlive every plan to
    /// retire it.
    pub(crate) fn validity(
        &self,
        anchor: &TrustAnchor<'_>,
        now: UnixTime,
    ) -> Option<(UnixTime, UnixTime)> {
        self.anchors
            .iter()
            .zip(&self.dates)
            .filter(|(root, (first, last))| *root == anchor && *first <= now && now <= *last)
            .map(|(_, validity)| *validity)
            .max_by_key(|(_, last)| *last)
    }

    /// Returns the certificate of the root that `anchor` was made from.
    pub(crate) fn certificate(&self, anchor: &TrustAnchor<'_>) -> Option<&CertificateDer<'static>> {
        let mut roots = self.anchors.iter().zip(&self.certificates);
        roots.find(|(root, _)| *root == anchor).map(|(_, certificate)| certificate)
    }
}

/// Checks that `root` may sign certificates, and returns its first and last second of validity.
fn check_authority(
    domain: &TrustDomain,
    root: &CertificateDer<'_>,
) -> Result<(UnixTime, UnixTime), RootError> {
    let encoding = |source| RootError::Encoding { domain: domain.clone(), source };
    let certificate = svid::parse(root).map_err(encoding)?;
    if !svid::may_sign(&certificate).map_err(encoding)?.unwrap_or(true) || !certificate.is_ca() {
        let subject = certificate.subject().to_string();
        return Err(RootError::NotAuthority { domain: domain.clone(), subject });
    }
    let validity = certificate.validity();
    Ok((svid::unix(validity.not_before), svid::unix(validity.not_after)))
}
