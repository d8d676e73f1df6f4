//! An authority whose files may be replaced while it issues, as cert-manager does.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use sluice_spiffe::TrustDomain;

use super::{CaError, LocalCa, PemFiles};
use crate::{
    clock::Clock,
    issuer::{CertRequest, Issued, Issuer, Issuing},
};

/// A [`LocalCa`] that is opened again when its files have changed. While they do not fit each other, the previous
/// authority goes on issuing.
#[derive(Debug)]
pub struct FollowedCa {
    files: PemFiles,
    domain: TrustDomain,
    clock: Arc<dyn Clock>,
    current: Mutex<(Seen, Arc<LocalCa>)>,
}

/// For each file: inode, time of change (seconds and nanoseconds) and time of modification, or why it cannot be
/// inspected.
type Seen = Vec<Result<[i64; 4], io::ErrorKind>>;

// === impl FollowedCa ===

impl FollowedCa {
    /// Opens the authority in `files`, to issue for `domain`.
    pub fn open(
        files: PemFiles,
        domain: &TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CaError> {
        let seen = look(&files);
        let ca = LocalCa::from_pem(&files, domain, clock.clone())?;
        let current = Mutex::new((seen, Arc::new(ca)));
        Ok(Self { files, domain: domain.clone(), clock, current })
    }

    /// Returns the authority that the files hold now or, while they are faulty, held last.
    pub fn current(&self) -> Arc<LocalCa> {
        let seen = look(&self.files);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.0 != seen {
            match LocalCa::from_pem(&self.files, &self.domain, self.clock.clone()) {
                Ok(ca) => {
                    tracing::info!(file = %self.files.certificate.display(), "the CA was replaced");
                    *current = (seen, Arc::new(ca));
                }
                // Tried again at the next request: certificate and key are rarely replaced at once.
                Err(error) => {
                    tracing::error!(%error, "the CA that was there before goes on issuing");
                }
            }
        }
        Arc::clone(&current.1)
    }
}

impl Issuer for FollowedCa {
    fn issue(&self, request: CertRequest) -> Issuing<'_> {
        Box::pin(std::future::ready(self.current().sign(&request).map(Issued::Signed)))
    }
}

fn look(files: &PemFiles) -> Seen {
    let paths = [Some(&files.certificate), Some(&files.key), files.roots.as_ref()];
    let stamp = |path: &Path| {
        let found = fs::metadata(path).map_err(|error| error.kind())?;
        let inode = i64::from_ne_bytes(found.ino().to_ne_bytes());
        Ok([inode, found.ctime(), found.ctime_nsec(), found.mtime()])
    };
    paths.into_iter().flatten().map(|path| stamp(path)).collect()
}
