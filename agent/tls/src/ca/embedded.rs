//! The authority that makes itself on first start and keeps its state in a directory.
//!
//! ```text
//! <dir>/lock     taken while the other two are looked for and made
//! <dir>/ca.key   P-256, PKCS #8, mode 0600; written first
//! <dir>/ca.crt   the root; its presence means that the authority is complete
//! ```
//! Every agent of a machine may share the directory: the first makes the authority, the others read
//! it.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use sluice_spiffe::TrustDomain;
use zeroize::Zeroizing;

use super::{
    CaError, LocalCa, Material, date,
    files::{file_error, read_certificates, read_key},
    random_serial,
};
use crate::clock::{Clock, after, before};

const LIFETIME: Duration = Duration::from_hours(24 * 3652);
/// How far a root's validity is dated back: further than any leaf's, so that setting the clock back by less than this
/// does not make the root invalid.
const BACKDATE: Duration = Duration::from_hours(24);

/// The certificate and key of a new authority, for callers that keep them elsewhere than in a directory.
pub struct NewRoot {
    /// The self-signed certificate, PEM.
    pub certificate: String,
    /// The private key, PKCS #8 in PEM; wiped when dropped.
    pub key: Zeroizing<String>,
}

impl NewRoot {
    /// Makes a root for `domain` with a P-256 key, valid for ten years.
    pub fn generate(domain: &TrustDomain, clock: &dyn Clock) -> Result<Self, CaError> {
        let key = Zeroizing::new(KeyPair::generate().map_err(CaError::Making)?);
        let mut params = CertificateParams::default();
        params.not_before = date(before(clock.now(), BACKDATE));
        params.not_after = date(after(clock.now(), LIFETIME));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
        params.distinguished_name.push(DnType::CommonName, "Sluice embedded root");
        let name = format!("spiffe://{domain}");
        params.subject_alt_names = vec![SanType::URI(name.try_into().map_err(CaError::Making)?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial());
        let certificate = params.self_signed(&*key).map_err(CaError::Making)?.pem();
        Ok(Self { certificate, key: Zeroizing::new(key.serialize_pem()) })
    }
}

impl std::fmt::Debug for NewRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewRoot").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl LocalCa {
    /// Opens the authority in `dir`, and makes it if there is none yet.
    pub fn embedded(
        dir: &Path,
        domain: &TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let (key_path, path) = (dir.join("ca.key"), dir.join("ca.crt"));
        make_private_dir(dir)?;
        let _lock = lock(&dir.join("lock"))?;
        if !exists(&path)? {
            create(dir, domain, clock.as_ref())?;
            tracing::info!(dir = %dir.display(), trust_domain = %domain, "made a new root CA");
        } else if !exists(&key_path)? {
            return Err(CaError::KeyMissing { path: key_path });
        }
        check_private(&key_path, 0o600)?;
        let material = Material {
            key: read_key(&key_path)?,
            chain: read_certificates(&path)?,
            roots: Vec::new(),
            path,
        };
        Self::new(material, domain, clock)
    }
}

fn create(dir: &Path, domain: &TrustDomain, clock: &dyn Clock) -> Result<(), CaError> {
    let NewRoot { certificate, key } = NewRoot::generate(domain, clock)?;
    // The key first: a crash in between leaves a key that the next start replaces.
    let write = |name: &str, contents: &[u8], mode| {
        let path = dir.join(name);
        sluice_files::replace(&path, contents, mode)
            .map_err(|source| file_error("write", &path, source))
    };
    write("ca.key", key.as_bytes(), 0o600)?;
    write("ca.crt", certificate.as_bytes(), 0o644)
}

fn make_private_dir(dir: &Path) -> Result<(), CaError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| file_error("create directory", dir, source))?;
    check_private(dir, 0o700)
}

/// Refuses a file or directory that has any permission beyond `wanted`.
fn check_private(path: &Path, wanted: u32) -> Result<(), CaError> {
    let metadata = fs::metadata(path).map_err(|source| file_error("inspect", path, source))?;
    let mode = metadata.mode() & 0o777;
    if mode & !wanted == 0 {
        return Ok(());
    }
    Err(CaError::Exposed { path: path.to_owned(), mode, wanted })
}

fn lock(path: &Path) -> Result<File, CaError> {
    let locked = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.lock().map(|()| file));
    locked.map_err(|source| file_error("lock", path, source))
}

fn exists(path: &Path) -> Result<bool, CaError> {
    path.try_exists().map_err(|source| file_error("look for", path, source))
}
