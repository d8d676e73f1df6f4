//! Where the authority's key and certificate come from, and how a change of them is noticed.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_files::Stamp;
use sluice_spiffe::TrustDomain;
use sluice_tls::{
    Clock,
    ca::{CaError, LocalCa, PemFiles},
};

use crate::Pending;

/// How often files are looked at.
pub(crate) const POLL: Duration = Duration::from_secs(1);

/// Keeps the authority's key and certificate: a directory, files, a Kubernetes Secret. Replicas that use the same
/// material are one authority.
pub trait CaMaterial: Send + Sync {
    /// Reads the authority as it is now. An implementation that makes one when there is none must make sure that
    /// replicas which start at once agree on a single one.
    fn open<'a>(
        &'a self,
        domain: &'a TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Pending<'a, Result<LocalCa, CaError>>;

    /// Waits until the authority may differ from what [`Self::open`] last read. The future may be dropped, and asked
    /// for again.
    fn changed(&self) -> Pending<'_, ()>;

    /// Returns whether agents know a root under which `authority` issues; `None` while that cannot be told. It is always
    /// so where the controller does not publish the roots.
    fn are_roots_known(&self, _authority: &LocalCa) -> Option<bool> {
        Some(true)
    }

    /// Hears of the authority that issues from now on. It may be an earlier one than [`Self::open`] last returned.
    fn issues(&self, _authority: &LocalCa) {}
}

/// An authority in files, which are looked at every second.
#[derive(Debug)]
pub struct CaFiles {
    place: Place,
    seen: Mutex<Option<Vec<Stamp>>>,
}

#[derive(Debug)]
enum Place {
    /// Made on first start, under a lock.
    Embedded(PathBuf),
    /// Put there by somebody else.
    Given(PemFiles),
}

// === impl CaFiles ===

impl CaFiles {
    /// Uses the authority that the first replica makes in `directory`; it stays the same from then on.
    pub fn embedded(directory: &Path) -> Self {
        Self { place: Place::Embedded(directory.to_owned()), seen: Mutex::default() }
    }

    /// Uses the authority in the files `tls.crt`, `tls.key` and `ca.crt` of `directory`, as cert-manager names them.
    /// They may be replaced at any time.
    pub fn cert_manager(directory: &Path) -> Self {
        let files = PemFiles {
            certificate: directory.join("tls.crt"),
            key: directory.join("tls.key"),
            roots: Some(directory.join("ca.crt")),
        };
        Self { place: Place::Given(files), seen: Mutex::default() }
    }

    fn look(&self) -> Vec<Stamp> {
        match &self.place {
            Place::Embedded(directory) => {
                ["ca.crt", "ca.key"].map(|name| Stamp::of(&directory.join(name))).into()
            }
            Place::Given(files) => {
                let files = [&files.certificate, &files.key].into_iter().chain(&files.roots);
                files.map(|path| Stamp::of(path)).collect()
            }
        }
    }

    fn remember(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.look());
    }

    fn is_unchanged(&self) -> bool {
        let now = self.look();
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&now)
    }
}

impl CaMaterial for CaFiles {
    fn open<'a>(
        &'a self,
        domain: &'a TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Pending<'a, Result<LocalCa, CaError>> {
        Box::pin(async move {
            // Noted before the files are read, so that what is written in between is read again.
            self.remember();
            match &self.place {
                Place::Embedded(directory) => {
                    let made = LocalCa::embedded(directory, domain, clock)?;
                    // That the authority was made here is no change to react to.
                    self.remember();
                    Ok(made)
                }
                Place::Given(files) => LocalCa::from_pem(files, domain, clock),
            }
        })
    }

    fn changed(&self) -> Pending<'_, ()> {
        Box::pin(async move {
            while self.is_unchanged() {
                tokio::time::sleep(POLL).await;
            }
        })
    }
}
