//! What an Istio-compatible CA sends: certificates as PEM texts, the leaf first, the roots last.
//!
//! istiod, istio-csr and our controller send one certificate per text and all roots in the last one. Other CAs put
//! everything into one text, or leave the root out. So a root is recognised by being self-issued, not by its place
//! alone.

use rustls_pki_types::CertificateDer;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::IssuedChain;
use crate::{
    roots::{RootError, certificates_of_pem},
    svid::{self, SvidError},
    verify::MAX_CHAIN,
};

/// Why an answer is not a chain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The answer holds no certificate.
    #[error("it holds no certificate")]
    Empty,
    /// A text is not PEM.
    #[error("part {part}: {source}")]
    Pem {
        /// Which text, from 1.
        part: usize,
        /// What is wrong.
        source: RootError,
    },
    /// More certificates than a path can have.
    #[error("it holds {0} certificates where at most {MAX_CHAIN} are accepted")]
    TooLong(usize),
    /// A certificate cannot be read.
    #[error("certificate {position}: {source}")]
    Encoding {
        /// Which certificate, from 1.
        position: usize,
        /// What is wrong.
        source: SvidError,
    },
    /// An authority's certificate stands where the workload's should.
    #[error(
        "it begins with the certificate of an authority ({subject:?}); the workload's must come first"
    )]
    LeafNotFirst {
        /// Whose certificate it is.
        subject: String,
    },
    /// Something behind the leaf cannot have signed it.
    #[error("certificate {position} ({subject:?}) is not that of an authority")]
    NotAuthority {
        /// Which certificate, from 1.
        position: usize,
        /// Whose certificate it is.
        subject: String,
    },
}

/// A CA's answer, divided into chain and roots.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What peers are shown: the leaf and the authorities below the root.
    pub chain: IssuedChain,
    /// The roots that came with it. Whoever uses them trusts the CA to say whom to trust.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Reads certificates in DER that follow one another, as SPIRE writes a bundle.
pub fn certificates_of_der(run: &[u8]) -> Result<Vec<CertificateDer<'static>>, ChainError> {
    let mut certificates = Vec::new();
    let mut rest = run;
    while !rest.is_empty() {
        let unreadable = |source| ChainError::Encoding { position: certificates.len() + 1, source };
        let (after, _) = X509Certificate::from_der(rest)
            .map_err(|error| unreadable(SvidError::Encoding(error.to_string())))?;
        let (certificate, after) = rest.split_at(rest.len() - after.len());
        certificates.push(CertificateDer::from(certificate.to_vec()));
        rest = after;
    }
    Ok(certificates)
}

// === impl Delivery ===

impl Delivery {
    /// Reads the PEM texts of an answer. Signatures, names and dates are not checked.
    pub fn of_pem<T: AsRef<[u8]>>(parts: &[T]) -> Result<Self, ChainError> {
        let mut all = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let found = certificates_of_pem(part.as_ref())
                .map_err(|source| ChainError::Pem { part: index + 1, source })?;
            all.extend(found);
        }
        if all.len() > MAX_CHAIN {
            return Err(ChainError::TooLong(all.len()));
        }
        let mut certificates = Vec::with_capacity(all.len());
        let mut roots = Vec::new();
        for (index, der) in all.into_iter().enumerate() {
            let certificate = svid::parse(&der)
                .map_err(|source| ChainError::Encoding { position: index + 1, source })?;
            let subject = || certificate.subject().to_string();
            if index == 0 && certificate.is_ca() {
                return Err(ChainError::LeafNotFirst { subject: subject() });
            }
            if index > 0 && !certificate.is_ca() {
                return Err(ChainError::NotAuthority { position: index + 1, subject: subject() });
            }
            let is_root =
                index > 0 && certificate.subject().as_raw() == certificate.issuer().as_raw();
            drop(certificate);
            if is_root { roots.push(der) } else { certificates.push(der) }
        }
        if certificates.is_empty() {
            return Err(ChainError::Empty);
        }
        Ok(Self { chain: IssuedChain { certificates }, roots })
    }
}

#[cfg(test)]
mod tests;
