//! Signing requests: the key, and the names that the request claims for it.
//!
//! Only the key of a request goes into a certificate. The names, usages and constraints that it asks for can only lead
//! to a refusal.

use std::time::Duration;

use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{CertificateSigningRequestParams, PublicKey, SanType};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, pem::PemObject};
use sluice_spiffe::SpiffeId;
use x509_parser::{
    certification_request::X509CertificationRequest,
    oid_registry::{
        OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384, OID_SIG_ECDSA_WITH_SHA256,
        OID_SIG_ECDSA_WITH_SHA384,
    },
    prelude::FromDer,
};

use super::{BACKDATE, LocalCa, leaf_params, random_serial};
use crate::{
    clock::{after, before},
    issuer::{IssueError, IssuedChain, MIN_TTL, uri_name},
};

/// Why a signing request is not signed, whoever sent it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is no PEM block `CERTIFICATE REQUEST`, or it is damaged.
    #[error("the request must be PEM with one block CERTIFICATE REQUEST: {0}")]
    Pem(#[source] rustls_pki_types::pem::Error),
    /// The request is not PKCS #10 (RFC 2986), or has extensions that cannot be judged.
    #[error("the request must be PKCS #10: {0}")]
    Encoding(#[source] rcgen::Error),
    /// Bytes follow the request.
    #[error("the request must be PKCS #10 and nothing after it")]
    Trailing,
    /// Certificates are not issued for keys of this kind.
    #[error(
        "the request's key must be ECDSA P-256 (with SHA-256) or P-384 (with SHA-384), not {algorithm}"
    )]
    Key {
        /// Object identifiers of the key, its curve and the signature.
        algorithm: String,
    },
    /// The sender does not hold the key.
    #[error("the request must be signed with its own key")]
    Signature,
}

/// A signing request that proves possession of an acceptable key.
#[derive(Debug, Clone)]
pub struct SigningRequest {
    public_key: PublicKey,
    names: Vec<SanType>,
}

// === impl SigningRequest ===

impl SigningRequest {
    /// Reads a request in PEM and checks its key and signature.
    pub fn from_pem(pem: &[u8]) -> Result<Self, RequestError> {
        let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(RequestError::Pem)?;
        Self::from_der(&der)
    }

    /// Reads a request in DER and checks its key and signature.
    pub fn from_der(der: &CertificateSigningRequestDer<'_>) -> Result<Self, RequestError> {
        let malformed = rcgen::Error::CouldNotParseCertificationRequest;
        let Ok((rest, request)) = X509CertificationRequest::from_der(der) else {
            return Err(RequestError::Encoding(malformed));
        };
        if !rest.is_empty() {
            return Err(RequestError::Trailing);
        }
        // Checked before the signature, so that no computation is spent on a key that would be refused.
        check_key(&request)?;
        let CertificateSigningRequestParams { params, public_key } =
            CertificateSigningRequestParams::from_der(der).map_err(refusal)?;
        Ok(Self { public_key, names: params.subject_alt_names })
    }

    /// Returns whether the request claims no name other than `id`: that one alone, or none.
    pub fn agrees_with(&self, id: &SpiffeId) -> bool {
        match self.names.as_slice() {
            [] => true,
            [SanType::URI(name)] => name.as_str() == id.as_str(),
            _ => false,
        }
    }
}

fn refusal(error: rcgen::Error) -> RequestError {
    if error == rcgen::Error::InvalidCertificationRequestSignature {
        RequestError::Signature
    } else {
        RequestError::Encoding(error)
    }
}

/// Checks the kind of key, and that the signature's hash is that of the curve: rcgen takes the kind of key that it
/// writes into the certificate from the signature's algorithm.
fn check_key(request: &X509CertificationRequest<'_>) -> Result<(), RequestError> {
    let key = &request.certification_request_info.subject_pki.algorithm;
    let signature = &request.signature_algorithm.algorithm;
    let curve = key.parameters.as_ref().and_then(|any| any.as_oid().ok());
    let fits = match &curve {
        Some(curve) if *curve == OID_EC_P256 => *signature == OID_SIG_ECDSA_WITH_SHA256,
        Some(curve) if *curve == OID_NIST_EC_P384 => *signature == OID_SIG_ECDSA_WITH_SHA384,
        _ => false,
    };
    if fits && key.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Ok(());
    }
    let curve = curve.map_or_else(String::new, |curve| format!(" on {curve}"));
    let algorithm = format!("{}{curve} signed by {signature}", key.algorithm);
    Err(RequestError::Key { algorithm })
}

// === impl LocalCa ===

impl LocalCa {
    /// Issues a leaf for the key of `request`, with `id` as its only name, for clients and servers. It is valid from a
    /// minute ago and never outlives the authority.
    pub fn sign_for(
        &self,
        id: &SpiffeId,
        request: &SigningRequest,
        ttl: Duration,
    ) -> Result<IssuedChain, IssueError> {
        let refused = |rule: String| IssueError::Refused { id: id.clone(), rule };
        let signing = |source| IssueError::Signing { id: id.clone(), source };
        if !id.is_in(&self.domain) || id.path().is_empty() {
            return Err(refused(format!("only workloads of trust domain {}", self.domain)));
        }
        if ttl < MIN_TTL {
            return Err(refused(format!("a lifetime of at least {} s", MIN_TTL.as_secs())));
        }
        let now = self.clock.now();
        if self.not_after <= now {
            return Err(refused("the CA's own certificate has expired; renew it".to_owned()));
        }
        let name = uri_name(id).map_err(signing)?;
        if !request.agrees_with(id) {
            return Err(refused(
                "the request must hold the identity as its only name, or none".to_owned(),
            ));
        }
        let not_after = after(now, ttl).min(self.not_after);
        let mut leaf = leaf_params(before(now, BACKDATE), not_after);
        leaf.subject_alt_names = vec![name];
        leaf.serial_number = Some(random_serial());
        let leaf = leaf.signed_by(&request.public_key, &self.issuer).map_err(signing)?;
        let certificates = std::iter::once(leaf.into()).chain(self.intermediates.iter().cloned());
        Ok(IssuedChain { certificates: certificates.collect() })
    }

    /// Returns an issued chain in PEM as Istio-compatible CAs answer: the leaf, each authority above it, and last all
    /// roots in one text.
    pub fn answer(&self, chain: &IssuedChain) -> Vec<String> {
        chain.certificates.iter().map(pem_of).chain([self.roots_pem()]).collect()
    }
}

pub(super) fn pem_of(der: &CertificateDer<'_>) -> String {
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new("CERTIFICATE", der.as_ref()), lines)
}

#[cfg(test)]
mod tests;
