//! The authority whose certificate and key an operator gives as PEM files (cert-manager's layout).

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use sluice_spiffe::TrustDomain;
use zeroize::Zeroizing;

use super::{CaError, LocalCa, Material};
use crate::{clock::Clock, roots::certificates_of_pem};

/// Where an authority's certificate and key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemFiles {
    /// The issuing certificate first, then those above it (`tls.crt`).
    pub certificate: PathBuf,
    /// The private key of the issuing certificate: PKCS #8, SEC 1 or PKCS #1 (`tls.key`).
    pub key: PathBuf,
    /// The roots that peers trust (`ca.crt`); without it, the self-signed ones of `certificate`.
    pub roots: Option<PathBuf>,
}

/// The contents of such files, for callers that read them elsewhere, such as from a Kubernetes
/// Secret.
#[derive(Clone, Copy)]
pub struct PemTexts<'a> {
    /// Where the certificate was read, for messages.
    pub origin: &'a Path,
    /// The issuing certificate first, then those above it.
    pub certificate: &'a [u8],
    /// The private key of the issuing certificate.
    pub key: &'a str,
    /// The roots that peers trust; without them, the self-signed ones of `certificate`.
    pub roots: Option<&'a [u8]>,
}

impl std::fmt::Debug for PemTexts<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PemTexts").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl LocalCa {
    /// Opens the authority in `files`, to issue for `domain`.
    pub fn from_pem(
        files: &PemFiles,
        domain: &TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let material = Material {
            path: files.certificate.clone(),
            key: read_key(&files.key)?,
            chain: read_certificates(&files.certificate)?,
            roots: files.roots.as_deref().map(read_certificates).transpose()?.unwrap_or_default(),
        };
        Self::new(material, domain, clock)
    }

    /// Opens the authority in `texts`, to issue for `domain`.
    pub fn from_texts(
        texts: &PemTexts<'_>,
        domain: &TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let roots = texts.roots.map(|pem| parse_certificates(texts.origin, pem)).transpose()?;
        let material = Material {
            path: texts.origin.to_owned(),
            key: parse_key(texts.origin, texts.key)?,
            chain: parse_certificates(texts.origin, texts.certificate)?,
            roots: roots.unwrap_or_default(),
        };
        Self::new(material, domain, clock)
    }
}

pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let pem = fs::read(path).map_err(|source| file_error("read", path, source))?;
    parse_certificates(path, &pem)
}

fn parse_certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let certificates = certificates_of_pem(pem)
        .map_err(|source| CaError::Pem { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(CaError::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}

pub(super) fn read_key(path: &Path) -> Result<KeyPair, CaError> {
    let pem = fs::read_to_string(path).map_err(|source| file_error("read", path, source))?;
    parse_key(path, &Zeroizing::new(pem))
}

fn parse_key(path: &Path, pem: &str) -> Result<KeyPair, CaError> {
    KeyPair::from_pem(pem).map_err(|source| CaError::Key { path: path.to_owned(), source })
}

pub(super) fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> CaError {
    CaError::File { action, path: path.to_owned(), source }
}
