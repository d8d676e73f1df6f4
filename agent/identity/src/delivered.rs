//! Roots that come over the network rather than from a file.

use std::collections::BTreeMap;

use sluice_spiffe::TrustDomain;
use sluice_tls::CertificateDer;

/// The roots that a source of certificates says to trust. Replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Roots of our own trust domain; empty until the source has named some.
    pub local: Vec<CertificateDer<'static>>,
    /// Of the trust domains that are federated with it, for those identities that the source says.
    pub federated: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
}
