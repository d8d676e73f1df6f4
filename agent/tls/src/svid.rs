//! What an X.509-SVID leaf must look like, whoever signed it.
//!
//! The rules are those of X509-SVID sections 2, 3.1, 4.1, 4.3 and 5.2
//! (<https://github.com/spiffe/spiffe/blob/main/standards/X509-SVID.md>). The subject and every name
//! that is not a URI are never looked at.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_spiffe::{IdError, SpiffeId};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time,
};

/// Why a certificate is not the certificate of a workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// The peer presented no certificate at all.
    #[error("no certificate was presented")]
    Missing,
    /// The certificate is not DER, or an extension is not what its type demands.
    #[error("the certificate cannot be read: {0}")]
    Encoding(String),
    /// A subject alternative name is not the text that its type demands.
    #[error("a subject alternative name of the certificate is not well formed")]
    Name,
    /// There is no URI among the subject alternative names.
    #[error("the certificate holds no URI name, so no SPIFFE identity")]
    NoUri,
    /// There is more than one URI; section 2 demands exactly one.
    #[error("the certificate holds {0} URI names where exactly one is allowed")]
    SeveralUris(usize),
    /// The URI is not a SPIFFE identity.
    #[error("the certificate's URI is not a SPIFFE identity: {0}")]
    NotSpiffe(#[source] IdError),
    /// The identity has no path: a trust domain is not a workload.
    #[error("{0} names a trust domain, not a workload of it")]
    NoPath(SpiffeId),
    /// The certificate may sign others.
    #[error("the certificate of {0} is a CA certificate")]
    Authority(SpiffeId),
    /// The key usage extension is missing, or is not what section 4.3 demands of a leaf.
    #[error("the certificate of {id} {fault}")]
    KeyUsage {
        /// Whose certificate it is.
        id: SpiffeId,
        /// What is wrong with its key usage.
        fault: &'static str,
    },
}

/// The readable part of a workload's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Svid {
    /// The identity that it certifies.
    pub id: SpiffeId,
    /// The serial number, in lower-case hexadecimal.
    pub serial: String,
    /// The issuer's distinguished name.
    pub issuer: String,
    /// First second of validity.
    pub not_before: UnixTime,
    /// Last second of validity.
    pub not_after: UnixTime,
}

// === impl Svid ===

impl Svid {
    /// Reads a leaf and refuses it unless it has the form of an X.509-SVID. Its signature and its validity are not
    /// checked here.
    pub fn read(leaf: &CertificateDer<'_>) -> Result<Self, SvidError> {
        let certificate = parse(leaf)?;
        let id = workload_id(&certificate)?;
        check_usage(&certificate, &id)?;
        Ok(Self {
            id,
            serial: format!("{:x}", certificate.tbs_certificate.serial),
            issuer: certificate.issuer().to_string(),
            not_before: unix(certificate.validity().not_before),
            not_after: unix(certificate.validity().not_after),
        })
    }

    /// Returns whether `now` lies within the validity, both ends included.
    pub fn is_valid_at(&self, now: UnixTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

pub(crate) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, SvidError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(SvidError::Encoding("bytes follow it".to_owned())),
        Err(error) => Err(SvidError::Encoding(error.to_string())),
    }
}

pub(crate) fn unix(time: ASN1Time) -> UnixTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

/// Returns the only URI among the subject alternative names, or `None` if there is no URI.
pub(crate) fn only_uri<'a>(
    certificate: &'a X509Certificate<'_>,
) -> Result<Option<&'a str>, SvidError> {
    let extension = certificate
        .subject_alternative_name()
        .map_err(|error| SvidError::Encoding(format!("subject alternative name: {error}")))?;
    let Some(extension) = extension else { return Ok(None) };
    let mut uris = Vec::new();
    for name in &extension.value.general_names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            // Refused, because another verifier might read a URI in it.
            GeneralName::Invalid(..) => return Err(SvidError::Name),
            GeneralName::OtherName(..)
            | GeneralName::RFC822Name(_)
            | GeneralName::DNSName(_)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => {}
        }
    }
    match uris.as_slice() {
        [] => Ok(None),
        [uri] => Ok(Some(uri)),
        several => Err(SvidError::SeveralUris(several.len())),
    }
}

fn workload_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let uri = only_uri(certificate)?.ok_or(SvidError::NoUri)?;
    let id: SpiffeId = uri.parse().map_err(SvidError::NotSpiffe)?;
    if id.path().is_empty() { Err(SvidError::NoPath(id)) } else { Ok(id) }
}

fn check_usage(certificate: &X509Certificate<'_>, id: &SpiffeId) -> Result<(), SvidError> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|error| SvidError::Encoding(format!("basic constraints: {error}")))?;
    if constraints.is_some_and(|extension| extension.value.ca) {
        return Err(SvidError::Authority(id.clone()));
    }
    let usage = certificate
        .key_usage()
        .map_err(|error| SvidError::Encoding(format!("key usage: {error}")))?;
    let fault = match usage.map(|extension| extension.value) {
        None => "has no key usage",
        Some(usage) if usage.key_cert_sign() => "may sign certificates (keyCertSign)",
        Some(usage) if usage.crl_sign() => "may sign revocation lists (cRLSign)",
        Some(usage) if !usage.digital_signature() => "may not sign a handshake (digitalSignature)",
        Some(_) => return Ok(()),
    };
    Err(SvidError::KeyUsage { id: id.clone(), fault })
}

/// Returns whether the key usage of an authority lets it sign certificates; `None` if it has no key usage.
pub(crate) fn may_sign(certificate: &X509Certificate<'_>) -> Result<Option<bool>, SvidError> {
    let usage = certificate
        .key_usage()
        .map_err(|error| SvidError::Encoding(format!("key usage: {error}")))?;
    Ok(usage.map(|extension| extension.value.key_cert_sign()))
}
