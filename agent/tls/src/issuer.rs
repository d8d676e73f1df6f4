//! Getting a certificate: the key, the request, and what an authority must offer.
//!
//! Most authorities sign a key that this process made. One that makes the keys itself (SPIRE) answers with
//! [`Issued::Made`], and says through [`News`] when it has something newer.

mod chain;
mod server;

use std::{collections::BTreeSet, future::Future, pin::Pin, sync::Arc, time::Duration};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    sign::{CertifiedKey, SigningKey},
};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use sluice_spiffe::{SpiffeId, TrustDomain};
use zeroize::Zeroizing;

pub use self::{
    chain::{ChainError, Delivery, certificates_of_der},
    server::{ServerRootsError, server_verifier},
};
use crate::verify::VerifyError;

/// The shortest lifetime that may be asked for: below it, renewal would be all that an agent does.
pub const MIN_TTL: Duration = Duration::from_mins(1);
/// The lifetime of a leaf unless configured otherwise.
pub const DEFAULT_TTL: Duration = Duration::from_hours(24);

/// What an agent asks an authority for.
#[derive(Debug, Clone)]
pub struct CertRequest {
    /// Whom the certificate shall name.
    pub id: SpiffeId,
    /// The signing request (PKCS #10, DER): a P-256 key, no subject, the identity as URI name.
    pub csr: CertificateSigningRequestDer<'static>,
    /// How long the certificate shall be valid.
    pub ttl: Duration,
}

/// The certificates of an authority's answer.
#[derive(Debug, Clone)]
pub struct IssuedChain {
    /// The leaf, then every intermediate up to the root, which is not included.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// What an authority answers a request with.
#[derive(Debug)]
pub enum Issued {
    /// A certificate for the key of the request.
    Signed(IssuedChain),
    /// A certificate with a key that the authority made. The key of the request is not used.
    Made {
        /// The certificates.
        chain: IssuedChain,
        /// The leaf's key.
        key: MadeKey,
        /// The trust domains that the identity believes of those that the authority brings roots of; see
        /// [`crate::TrustBundle::offered`].
        federates_with: BTreeSet<TrustDomain>,
    },
}

/// What was issued, joined with its key.
#[derive(Clone)]
pub(crate) struct Certified {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) federates_with: BTreeSet<TrustDomain>,
}

/// A private key that an authority made (PKCS #8, DER). Never shown, wiped when it is dropped.
pub struct MadeKey(Zeroizing<Vec<u8>>);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssueError {
    /// The authority refuses, and says which rule forbids the certificate.
    #[error("the CA refuses a certificate for {id}: {rule}")]
    Refused {
        /// The identity that was asked for.
        id: SpiffeId,
        /// The rule, in the authority's words.
        rule: String,
    },
    /// The authority cannot be reached, or broke off.
    #[error("the CA cannot be asked for a certificate for {id}: {source}")]
    Unreachable {
        /// The identity that was asked for.
        id: SpiffeId,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The authority did not answer in time.
    #[error("the CA did not answer for {id} within {} ms", after.as_millis())]
    TimedOut {
        /// The identity that was asked for.
        id: SpiffeId,
        /// How long the store waited for the answer.
        after: Duration,
    },
    /// The answer is not a chain of certificates in the order that was agreed.
    #[error("the CA's answer for {id} is not a certificate chain: {source}")]
    Malformed {
        /// The identity that was asked for.
        id: SpiffeId,
        /// What is wrong with it.
        source: ChainError,
    },
    /// Making a key, a request or a certificate failed.
    #[error("a certificate for {id} could not be made: {source}")]
    Signing {
        /// The identity that was asked for.
        id: SpiffeId,
        /// What the library reported.
        source: rcgen::Error,
    },
    /// Every peer would refuse the certificate that came, so it is not used.
    #[error("the CA issued a certificate for {id} that peers would refuse: {source}")]
    Unusable {
        /// The identity that was asked for.
        id: SpiffeId,
        /// Why it would be refused.
        source: VerifyError,
    },
    /// The certificate that came is for somebody else.
    #[error("the CA was asked for a certificate for {id}, but issued one for {issued}")]
    WrongIdentity {
        /// The identity that was asked for.
        id: SpiffeId,
        /// The identity that the certificate names.
        issued: SpiffeId,
    },
    /// The certificate that came does not belong to our key, or the key cannot be used.
    #[error("the certificate that the CA issued for {id} does not fit its key: {source}")]
    WrongKey {
        /// The identity that was asked for.
        id: SpiffeId,
        /// What rustls found.
        source: rustls::Error,
    },
}

/// The future that yields an [`Issuer`]'s answer.
pub type Issuing<'a> = Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>>;

/// A certificate authority as the store sees it.
pub trait Issuer: Send + Sync {
    /// Asks for one certificate. The future may be dropped when the answer is no longer wanted.
    fn issue(&self, request: CertRequest) -> Issuing<'_>;

    /// Follows what the authority does for `id` unasked. The store calls this for the first pod of `id`, before
    /// anything is issued, and drops the answer when the last pod has left. The default is `None`, for an authority
    /// that only ever answers.
    fn follow(&self, _id: &SpiffeId) -> Option<Box<dyn News>> {
        None
    }
}

/// Tells of what an authority does for one identity unasked.
pub trait News: Send {
    /// Waits until the authority has something other for the identity than [`Issuer::issue`] last answered. The future
    /// may be dropped, and asked for again.
    fn wait(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// A private key that exists in memory only, and the request that goes with it.
pub(crate) struct PendingKey {
    key: Arc<dyn SigningKey>,
    csr: CertificateSigningRequestDer<'static>,
}

// === impl CertRequest ===

impl CertRequest {
    /// Returns the signing request as PEM, the form that external CAs expect.
    pub fn csr_pem(&self) -> String {
        pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", self.csr.as_ref()))
    }
}

// === impl PendingKey ===

impl PendingKey {
    /// Makes a P-256 key and a request for `id`.
    pub(crate) fn generate(id: &SpiffeId) -> Result<Self, IssueError> {
        let signing = |source| IssueError::Signing { id: id.clone(), source };
        let pair = Zeroizing::new(KeyPair::generate().map_err(signing)?);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_name(id).map_err(signing)?];
        let csr = params.serialize_request(&*pair).map_err(signing)?.into();
        let key = MadeKey::new(pair.serialize_der())
            .load()
            .map_err(|source| IssueError::WrongKey { id: id.clone(), source })?;
        Ok(Self { key, csr })
    }

    pub(crate) fn request(&self, id: &SpiffeId, ttl: Duration) -> CertRequest {
        CertRequest { id: id.clone(), csr: self.csr.clone(), ttl }
    }

    /// Joins what was issued with its key: ours, or the one that came along.
    pub(crate) fn certified(self, id: &SpiffeId, issued: Issued) -> Result<Certified, IssueError> {
        let unfit = |source| IssueError::WrongKey { id: id.clone(), source };
        let (chain, key, federates_with) = match issued {
            Issued::Signed(chain) => (chain, self.key, BTreeSet::new()),
            Issued::Made { chain, key, federates_with } => {
                (chain, key.load().map_err(unfit)?, federates_with)
            }
        };
        let certified = CertifiedKey::new(chain.certificates, key);
        certified.keys_match().map_err(unfit)?;
        Ok(Certified { key: Arc::new(certified), federates_with })
    }
}

// === impl MadeKey ===

impl MadeKey {
    /// Takes over the key without parsing it.
    pub fn new(pkcs8: Vec<u8>) -> Self {
        Self(Zeroizing::new(pkcs8))
    }

    fn load(&self) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        // Borrowed, because the provider's own way to load a key keeps a copy that nobody wipes.
        any_supported_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.0.as_slice())))
    }
}

impl std::fmt::Debug for MadeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MadeKey")
    }
}

/// Returns `id` as a subject alternative name.
pub(crate) fn uri_name(id: &SpiffeId) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(id.as_str().try_into()?))
}
