//! What an operator is shown of an authority: its name, serial number and validity.

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::{
    identity::Identity,
    roots::TrustBundle,
    svid::{self, SvidError},
};

/// The readable part of an authority's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorityStatus {
    /// The authority's distinguished name.
    pub subject: String,
    /// The serial number, in lower-case hexadecimal.
    pub serial: String,
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity.
    pub not_after: UnixTime,
}

impl AuthorityStatus {
    /// Reads these fields from an authority's certificate.
    pub fn read(certificate: &CertificateDer<'_>) -> Result<Self, SvidError> {
        let certificate = svid::parse(certificate)?;
        Ok(Self {
            subject: certificate.subject().to_string(),
            serial: format!("{:x}", certificate.tbs_certificate.serial),
            not_before: svid::unix(certificate.validity().not_before),
            not_after: svid::unix(certificate.validity().not_after),
        })
    }
}

impl TrustBundle {
    /// Returns the roots of all known trust domains.
    pub fn authorities(&self) -> Vec<AuthorityStatus> {
        let roots = self.domains().flat_map(|domain| self.roots(domain));
        // Nothing is dropped: a bundle accepts only certificates that can be read.
        roots.filter_map(|root| AuthorityStatus::read(root).ok()).collect()
    }
}

impl Identity {
    /// Returns the authorities between the certificate and its root.
    pub fn authorities(&self) -> Vec<AuthorityStatus> {
        let above = self.chain().iter().skip(1);
        above.filter_map(|certificate| AuthorityStatus::read(certificate).ok()).collect()
    }
}
