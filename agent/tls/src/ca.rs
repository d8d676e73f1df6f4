//! A certificate authority inside the agent: its own, or one whose key is given as files.

mod embedded;
mod endpoint;
mod files;
mod followed;
mod request;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_spiffe::{IdError, SpiffeId, TrustDomain};
use time::OffsetDateTime;

pub use self::{
    embedded::NewRoot,
    endpoint::{Endpoint, EndpointError, EndpointStream},
    files::{PemFiles, PemTexts},
    followed::FollowedCa,
    request::{RequestError, SigningRequest},
};
use crate::{
    clock::Clock,
    issuer::{CertRequest, IssueError, Issued, IssuedChain, Issuer, Issuing, MIN_TTL, PendingKey},
    provider::provider,
    roots::{RootError, TrustBundle},
    svid::{self, SvidError},
    verify::{PeerRole, VerifyError, verify_chain},
};

/// How far a leaf's validity is dated back, for peers whose clock is slow.
const BACKDATE: Duration = Duration::from_mins(1);

/// Why the authority cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else on the machine could read the key.
    #[error(
        "{} may be read or changed by others (mode {mode:o}): set mode {wanted:o}, and renew the key if it may be known",
        path.display()
    )]
    Exposed {
        /// The file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// What they should be.
        wanted: u32,
    },
    /// The certificate is there, but not its key.
    #[error(
        "{} is missing beside its certificate: put it back, or remove the whole directory to start a new CA that no running peer trusts",
        path.display()
    )]
    KeyMissing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The key cannot be read.
    #[error("{} holds no usable private key: {source}", path.display())]
    Key {
        /// The key's file.
        path: PathBuf,
        /// What the library reported.
        source: rcgen::Error,
    },
    /// There is no certificate in the file.
    #[error("{} holds no certificate", path.display())]
    NoCertificate {
        /// The certificate's file.
        path: PathBuf,
    },
    /// The PEM text is damaged.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The damaged file.
        path: PathBuf,
        /// What is wrong.
        source: RootError,
    },
    /// The certificate cannot be read.
    #[error("the CA certificate in {} cannot be used: {source}", path.display())]
    Certificate {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        source: SvidError,
    },
    /// The certificate may not issue others now, or not with this key.
    #[error("the CA certificate in {} {fault}", path.display())]
    Unfit {
        /// The certificate's file.
        path: PathBuf,
        /// Why not, and what to do.
        fault: &'static str,
    },
    /// Peers that trust these roots would refuse what this authority issues.
    #[error("what the CA certificate in {} issues would be refused: {source}; give the roots that it leads to", path.display())]
    Disowned {
        /// The certificate's file.
        path: PathBuf,
        /// Why it would be refused.
        source: Box<VerifyError>,
    },
    /// A root cannot be used.
    #[error("the roots that belong to {} cannot be used: {source}", path.display())]
    Root {
        /// The certificate's file.
        path: PathBuf,
        /// Which root is faulty, and why.
        source: RootError,
    },
    /// The authority could not issue the certificate by which it is tested.
    #[error("the CA certificate in {} cannot issue: {source}", path.display())]
    Trial {
        /// The certificate's file.
        path: PathBuf,
        /// What happened.
        source: Box<IssueError>,
    },
    /// Making the key or the certificate failed.
    #[error("cannot make a CA certificate: {0}")]
    Making(#[source] rcgen::Error),
}

/// An authority whose key this process holds. It issues for one trust domain only.
pub struct LocalCa {
    domain: TrustDomain,
    issuer: rcgen::Issuer<'static, KeyPair>,
    /// The certificates that go with every leaf: the authority and those above it, without self-signed ones.
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_after: UnixTime,
    clock: Arc<dyn Clock>,
}

/// A key and certificate read from files, not yet checked.
struct Material {
    /// Where the certificate was read, for messages.
    path: PathBuf,
    key: KeyPair,
    /// The authority first, then those above it.
    chain: Vec<CertificateDer<'static>>,
    /// The roots that peers trust; if empty, the self-signed certificates of `chain`.
    roots: Vec<CertificateDer<'static>>,
}

// === impl LocalCa ===

impl LocalCa {
    /// Returns the roots that peers must trust to believe what is issued here.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Returns the roots as one PEM text.
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(request::pem_of).collect()
    }

    /// Returns the last second of validity of the authority's own certificate.
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }

    /// Returns whether peers that trust `roots`, and no others, accept what is issued here.
    pub fn is_believed_under(&self, roots: &[CertificateDer<'static>]) -> bool {
        let bundle = TrustBundle::new(self.domain.clone(), roots.iter().cloned());
        let trial = self.trial_id().ok().and_then(|id| self.trial(&id).ok());
        bundle.ok().zip(trial).is_some_and(|(bundle, chain)| {
            verify_chain(&bundle, &chain, PeerRole::Server, self.clock.now()).is_ok()
        })
    }

    /// Reads the CSR of `request`, then does what [`Self::sign_for`] does.
    pub fn sign(&self, request: &CertRequest) -> Result<IssuedChain, IssueError> {
        let CertRequest { id, csr, ttl } = request;
        let read = SigningRequest::from_der(csr)
            .map_err(|error| IssueError::Refused { id: id.clone(), rule: error.to_string() })?;
        self.sign_for(id, &read, *ttl)
    }

    fn new(
        material: Material,
        domain: &TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let Material { path, key, chain, roots } = material;
        let Some(own) = chain.first() else {
            return Err(CaError::NoCertificate { path });
        };
        let not_after =
            check_authority(own, &key, clock.now()).map_err(|error| error.in_file(path.clone()))?;
        let unreadable = |source| CaError::Certificate { path: path.clone(), source };
        let mut intermediates = Vec::new();
        let mut self_signed = Vec::new();
        for certificate in &chain {
            let parsed = svid::parse(certificate).map_err(unreadable)?;
            let is_root = parsed.subject() == parsed.issuer();
            let list = if is_root { &mut self_signed } else { &mut intermediates };
            list.push(certificate.clone());
        }
        let roots = if roots.is_empty() { self_signed } else { roots };
        if roots.is_empty() {
            let fault = "is not a root, and no root was given: add `roots`";
            return Err(CaError::Unfit { path, fault });
        }
        let issuer = rcgen::Issuer::from_ca_cert_der(own, key).map_err(CaError::Making)?;
        let domain = domain.clone();
        let authority = Self { domain, issuer, intermediates, roots, not_after, clock };
        authority.try_out(&path)?;
        Ok(authority)
    }

    /// Issues a certificate for nobody and judges it as a peer would. A chain that does not fit its roots, as a reader
    /// may find between two writes, is thus noticed here and not at every handshake.
    fn try_out(&self, path: &Path) -> Result<(), CaError> {
        let trial = |source| CaError::Trial { path: path.to_owned(), source: Box::new(source) };
        let bundle = TrustBundle::new(self.domain.clone(), self.roots.iter().cloned())
            .map_err(|source| CaError::Root { path: path.to_owned(), source })?;
        let disowned =
            |source| CaError::Disowned { path: path.to_owned(), source: Box::new(source) };
        let id = self.trial_id().map_err(|error| disowned(SvidError::NotSpiffe(error).into()))?;
        let chain = self.trial(&id).map_err(trial)?;
        verify_chain(&bundle, &chain, PeerRole::Server, self.clock.now()).map_err(disowned)?;
        Ok(())
    }

    fn trial_id(&self) -> Result<SpiffeId, IdError> {
        format!("spiffe://{}/sluice/trial", self.domain).parse()
    }

    fn trial(&self, id: &SpiffeId) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        let request = PendingKey::generate(id)?.request(id, MIN_TTL);
        Ok(self.sign(&request)?.certificates)
    }
}

impl Issuer for LocalCa {
    fn issue(&self, request: CertRequest) -> Issuing<'_> {
        Box::pin(std::future::ready(self.sign(&request).map(Issued::Signed)))
    }
}

impl std::fmt::Debug for LocalCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalCa").field("domain", &self.domain).finish_non_exhaustive()
    }
}

/// What is wrong with an authority's certificate, whichever file it was read from.
enum Fault {
    Unreadable(SvidError),
    Unfit(&'static str),
}

impl Fault {
    fn in_file(self, path: PathBuf) -> CaError {
        match self {
            Self::Unreadable(source) => CaError::Certificate { path, source },
            Self::Unfit(fault) => CaError::Unfit { path, fault },
        }
    }
}

/// Checks that `own` may issue now with `key`, and returns its last second.
fn check_authority(
    own: &CertificateDer<'_>,
    key: &KeyPair,
    now: UnixTime,
) -> Result<UnixTime, Fault> {
    let certificate = svid::parse(own).map_err(Fault::Unreadable)?;
    let may_sign = svid::may_sign(&certificate).map_err(Fault::Unreadable)?;
    let not_after = svid::unix(certificate.validity().not_after);
    let spki_key = certificate.public_key().subject_public_key.data.as_ref();
    let fault = if !certificate.is_ca() {
        "is not a CA certificate (basicConstraints CA)"
    } else if may_sign == Some(false) {
        "may not sign certificates (keyUsage keyCertSign)"
    } else if spki_key != key.public_key_raw() {
        "belongs to another key"
    } else if not_after <= now {
        "has expired: renew it"
    } else if now < svid::unix(certificate.validity().not_before) {
        "is not valid yet: check this machine's clock"
    } else {
        return Ok(not_after);
    };
    Err(Fault::Unfit(fault))
}

/// Returns all parameters of a leaf but its name, key and serial number.
fn leaf_params(not_before: UnixTime, not_after: UnixTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = date(not_before);
    params.not_after = date(not_after);
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Returns a serial number with 126 random bits: positive, and never the same twice.
fn random_serial() -> SerialNumber {
    let mut bytes = [0; 16];
    if provider().secure_random.fill(&mut bytes).is_err() {
        // Without randomness there is no key to certify either; a fixed serial harms nobody.
        bytes = [1; 16];
    }
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// Returns `time` as X.509 writes it, at most the end of year 9999, as RFC 5280 demands.
fn date(time: UnixTime) -> OffsetDateTime {
    const LAST: i64 = 253_402_300_799;
    let seconds = i64::try_from(time.as_secs()).unwrap_or(LAST).min(LAST);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests;
