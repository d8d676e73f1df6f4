//! One certificate revocation list.

use std::{
    cmp::Ordering,
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_parser::{
    extensions::ParsedExtension, num_bigint::BigUint, prelude::FromDer,
    revocation_list::CertificateRevocationList,
};

use crate::{provider::provider, svid};

/// The most issuers for which one list remembers whether they signed it. Issuers come from paths that were verified, so
/// there are few; but an authority that makes thousands of others must not fill the memory.
const MAX_SIGNERS: usize = 64;

/// Why a text is not a list of revoked certificates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CrlError {
    /// The text is neither PEM with an `X509 CRL` section nor DER.
    #[error("holds no revocation list: write PEM (BEGIN X509 CRL) or DER")]
    Empty,
    /// The PEM text is damaged.
    #[error("the PEM text is damaged: {0}")]
    Pem(String),
    /// The list is damaged, or has features that are not supported, such as deltas.
    #[error("is not a usable revocation list: {0}")]
    Encoding(String),
    /// An authority of that name is trusted, but its key did not sign the list.
    #[error("the revocation list in the name of {issuer} is not signed by its key")]
    Signature {
        /// The issuer's name.
        issuer: String,
    },
    /// The issuer may not sign lists.
    #[error("{issuer} may not sign revocation lists (keyUsage cRLSign)")]
    Usage {
        /// The issuer's name.
        issuer: String,
    },
    /// The list is older than the one in force.
    #[error("the revocation list of {issuer} is number {number}, but {known} is in force already")]
    Older {
        /// The issuer's name.
        issuer: String,
        /// The number of the refused list, in hexadecimal.
        number: String,
        /// The number of the list in force.
        known: String,
    },
}

/// One certificate revocation list, read and well formed. Whether an issuer signed it is checked when a certificate of
/// that issuer is judged, once for each issuer.
#[derive(Debug)]
pub struct Crl {
    list: CertRevocationList<'static>,
    der: CertificateRevocationListDer<'static>,
    issuer: String,
    key_id: Option<Vec<u8>>,
    /// The number of the list: big-endian, without leading zeros.
    number: Option<Vec<u8>>,
    this_update: UnixTime,
    next_update: UnixTime,
    /// Whether the issuer whose certificate has this hash signed the list.
    signers: Mutex<HashMap<[u8; 32], bool>>,
}

// === impl Crl ===

impl Crl {
    /// Reads every list of a file: PEM, several lists in a row, or one list in DER.
    pub fn read_all(bytes: &[u8]) -> Result<Vec<Self>, CrlError> {
        let is_pem = bytes.windows(11).any(|window| window == b"-----BEGIN ");
        if !is_pem {
            let is_blank = bytes.iter().all(u8::is_ascii_whitespace);
            let der = CertificateRevocationListDer::from(bytes.to_vec());
            return if is_blank { Err(CrlError::Empty) } else { Ok(vec![Self::read(der)?]) };
        }
        let mut all = Vec::new();
        for der in CertificateRevocationListDer::pem_slice_iter(bytes) {
            all.push(Self::read(der.map_err(|error| CrlError::Pem(error.to_string()))?)?);
        }
        if all.is_empty() { Err(CrlError::Empty) } else { Ok(all) }
    }

    fn read(der: CertificateRevocationListDer<'static>) -> Result<Self, CrlError> {
        let unusable = |error: webpki::Error| CrlError::Encoding(error.to_string());
        let list =
            CertRevocationList::from(OwnedCertRevocationList::from_der(&der).map_err(unusable)?);
        let parsed = parse(&der)?;
        let key_id = parsed.extensions().iter().find_map(|extension| {
            if let ParsedExtension::AuthorityKeyIdentifier(id) = extension.parsed_extension() {
                return id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
            None
        });
        let next_update =
            parsed.next_update().ok_or_else(|| CrlError::Encoding("no nextUpdate".to_owned()))?;
        let (issuer, next_update) = (parsed.issuer().to_string(), svid::unix(next_update));
        let this_update = svid::unix(parsed.last_update());
        let number = parsed.crl_number().map(BigUint::to_bytes_be);
        let signers = Mutex::default();
        Ok(Self { list, der, issuer, key_id, number, this_update, next_update, signers })
    }

    /// Returns the issuer's distinguished name.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Returns the list as its issuer encoded it.
    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Returns when the list was made.
    pub fn this_update(&self) -> UnixTime {
        self.this_update
    }

    /// Returns when the issuer promised the next list.
    pub fn next_update(&self) -> UnixTime {
        self.next_update
    }

    /// Returns whether the next list should have been published by `now`.
    pub fn is_expired_at(&self, now: UnixTime) -> bool {
        self.next_update <= now
    }

    /// Whether both come from one authority and are about the same certificates, as far as they say
    /// themselves. An authority may divide what it revokes among several lists, each with numbers of its
    /// own (RFC 5280 sections 5.2.3 and 5.2.5).
    pub fn is_of_same_issuer_and_scope(&self, other: &Self) -> bool {
        let (mine, others) = (&self.list, &other.list);
        mine.issuer() == others.issuer()
            && self.key_id == other.key_id
            && mine.issuing_distribution_point() == others.issuing_distribution_point()
    }

    /// Checks that this may take the place of `known`, which has the same issuer and scope.
    pub fn check_successor_of(&self, known: &Self) -> Result<(), CrlError> {
        let order = |number: &Option<Vec<u8>>| number.clone().map(|n| (n.len(), n));
        if order(&self.number).cmp(&order(&known.number)) != Ordering::Less {
            return Ok(());
        }
        let shown = |number: &Option<Vec<u8>>| {
            number.as_deref().map_or_else(|| "none".to_owned(), super::hexadecimal)
        };
        let (number, known) = (shown(&self.number), shown(&known.number));
        Err(CrlError::Older { issuer: self.issuer.clone(), number, known })
    }

    /// Checks the signature against those of `roots` that bear the issuer's name. A list of an intermediate authority
    /// passes: its signature is checked once the authority is seen.
    pub fn check_signature<'a>(
        &self,
        roots: impl Iterator<Item = &'a CertificateDer<'a>>,
    ) -> Result<(), CrlError> {
        let mut outcome = Ok(());
        for root in roots {
            let bears_name = EndEntityCert::try_from(root)
                .is_ok_and(|certificate| certificate.subject() == self.list.issuer());
            if !bears_name {
                continue;
            }
            outcome = self.verify(root);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }

    /// Returns whether this is a list of `issuer`, to whom a certificate refers as `name`.
    pub(super) fn is_of(&self, name: &[u8], issuer: &CertificateDer<'_>) -> bool {
        if self.list.issuer() != name {
            return false;
        }
        let hash: [u8; 32] = Sha256::digest(issuer.as_ref()).into();
        let mut signers = self.signers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(signed) = signers.get(&hash) {
            return *signed;
        }
        let outcome = self.verify(issuer);
        if let Err(error) = &outcome {
            tracing::warn!(%error, "a revocation list says nothing about an authority of its issuer's name");
        }
        if signers.len() >= MAX_SIGNERS {
            signers.clear();
        }
        signers.insert(hash, outcome.is_ok());
        outcome.is_ok()
    }

    /// Returns whether the issuer's certificate with `serial` (DER content) is revoked.
    pub(super) fn lists(&self, serial: &[u8]) -> bool {
        // An unreadable entry was refused with the whole list; should one remain, it counts as revoked.
        !matches!(self.list.find_serial(serial), Ok(None))
    }

    fn verify(&self, issuer: &CertificateDer<'_>) -> Result<(), CrlError> {
        let unsigned = || CrlError::Signature { issuer: self.issuer.clone() };
        let authority = svid::parse(issuer).map_err(|_unreadable| unsigned())?;
        let usage = authority.key_usage().map_err(|_unreadable| unsigned())?;
        if usage.is_some_and(|usage| !usage.value.crl_sign()) {
            return Err(CrlError::Usage { issuer: self.issuer.clone() });
        }
        let certificate = EndEntityCert::try_from(issuer).map_err(|_unreadable| unsigned())?;
        let parsed = parse(&self.der)?;
        let oid = parsed.signature_algorithm.algorithm.as_bytes();
        let is_signed = provider().signature_verification_algorithms.all.iter().any(|algorithm| {
            // DER of an object identifier: tag 6, its length, its content.
            let named = matches!(
                algorithm.signature_alg_id().as_ref().split_at_checked(2),
                Some(([6, length], rest)) if rest.get(..usize::from(*length)) == Some(oid)
            );
            let (signed, signature) = (parsed.tbs_cert_list.as_ref(), &parsed.signature_value.data);
            named && certificate.verify_signature(*algorithm, signed, signature).is_ok()
        });
        if is_signed { Ok(()) } else { Err(unsigned()) }
    }
}

impl PartialEq for Crl {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for Crl {}

fn parse<'a>(
    der: &'a CertificateRevocationListDer<'_>,
) -> Result<CertificateRevocationList<'a>, CrlError> {
    match CertificateRevocationList::from_der(der) {
        Ok(([], crl)) => Ok(crl),
        Ok(_) => Err(CrlError::Encoding("bytes follow it".to_owned())),
        Err(error) => Err(CrlError::Encoding(error.to_string())),
    }
}
