//! The certificates of this node's workloads: asked for when a pod enrols, renewed at half life,
//! dropped with the last pod.
//!
//! Readers never take a lock and never wait for the authority, except in [`CertStore::wait`].
//! Writers (enrolment, a new certificate, new roots) go one at a time through `Shared::claims`.

mod entry;
mod judge;
mod renewal;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_spiffe::SpiffeId;
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
};

use self::entry::{Entry, Next};
use crate::{
    clock::Clock,
    identity::{Identity, Trust},
    issuer::{DEFAULT_TTL, Issuer},
    roots::TrustBundle,
    svid::Svid,
    verify::{self, VerifyError},
};

/// How the store asks for certificates.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The lifetime to ask for, at least [`crate::MIN_TTL`].
    pub ttl: Duration,
    /// How long one answer may take. With the longest pause between two requests (5 s) it bounds
    /// the recovery after an outage.
    pub request_timeout: Duration,
    /// Requests that may be under way at once.
    pub concurrent_requests: usize,
}

/// The certificates of the local workloads, and the roots that their peers are judged by.
#[derive(Debug)]
pub struct CertStore {
    shared: Arc<Shared>,
}

/// One certificate as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertStatus {
    /// The local workload.
    pub identity: SpiffeId,
    /// The workload's current certificate, valid or not; `None` until the first one has come.
    pub certificate: Option<Svid>,
    /// When the next certificate will be asked for.
    pub next_renewal: UnixTime,
    /// Why the last request failed; `None` once one succeeded.
    pub last_error: Option<String>,
    /// Whether it failed because the authority refuses, rather than because it was not reached.
    pub is_refused: bool,
}

/// Why there is no certificate to use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// No local pod has this identity.
    #[error("no pod of this node has the identity {0}")]
    Unknown(SpiffeId),
    /// No valid certificate came in time.
    #[error(
        "no valid certificate for {id} within {} ms; the last request: {}",
        waited.as_millis(),
        last_error.as_deref().unwrap_or("not answered yet")
    )]
    TimedOut {
        /// The local workload.
        id: SpiffeId,
        /// How long the caller waited.
        waited: Duration,
        /// Why the last request failed.
        last_error: Option<String>,
    },
}

/// Local pods by identity.
type Claims = HashMap<SpiffeId, usize>;

struct Shared {
    settings: Settings,
    issuer: Arc<dyn Issuer>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    trust: ArcSwap<Trust>,
    generation: watch::Sender<u64>,
    entries: ArcSwap<HashMap<SpiffeId, Arc<Entry>>>,
    /// Local pods by identity. Whoever holds it is the only writer of `entries`, of `trust` and of
    /// every entry's certificate.
    claims: Mutex<Claims>,
    permits: Semaphore,
    /// When a certificate of each identity was last asked for; outlives `forget` and `want`.
    asked: Mutex<HashMap<SpiffeId, tokio::time::Instant>>,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self { ttl: DEFAULT_TTL, request_timeout: Duration::from_secs(5), concurrent_requests: 8 }
    }
}

// === impl CertStore ===

impl CertStore {
    /// Creates a store without certificates. Its requests run on the runtime that this is called in.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(
        settings: Settings,
        issuer: Arc<dyn Issuer>,
        bundle: TrustBundle,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let trust = Trust { bundle: Arc::new(bundle), generation: 0, clock: clock.clone() };
        let shared = Shared {
            permits: Semaphore::new(settings.concurrent_requests.max(1)),
            settings,
            issuer,
            clock,
            runtime: Handle::current(),
            trust: ArcSwap::from_pointee(trust),
            generation: watch::Sender::new(0),
            entries: ArcSwap::default(),
            claims: Mutex::default(),
            asked: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Counts one more local pod of `id`; the first one asks for a certificate at once.
    pub fn want(&self, id: &SpiffeId) {
        let mut claims = lock(&self.shared.claims);
        let count = claims.entry(id.clone()).or_default();
        *count += 1;
        if *count > 1 {
            return;
        }
        let entry = Arc::new(Entry::new(id.clone()));
        let keeper = renewal::keep(self.shared.clone(), entry.clone());
        entry.kept_by(self.shared.runtime.spawn(keeper).abort_handle());
        let mut entries = HashMap::clone(&self.shared.entries.load());
        entries.insert(id.clone(), entry);
        self.shared.entries.store(Arc::new(entries));
    }

    /// Counts one local pod of `id` less. When the last one leaves, the key is dropped. Established connections go on.
    pub fn forget(&self, id: &SpiffeId) {
        let mut claims = lock(&self.shared.claims);
        let Some(count) = claims.get_mut(id) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        claims.remove(id);
        let mut entries = HashMap::clone(&self.shared.entries.load());
        let forgotten = entries.remove(id);
        self.shared.entries.store(Arc::new(entries));
        if let Some(entry) = forgotten {
            entry.abandon();
        }
    }

    /// Returns the current certificate of `id`, if there is one that is valid now.
    pub fn get(&self, id: &SpiffeId) -> Option<Arc<Identity>> {
        self.shared.entries.load().get(id)?.usable()
    }

    /// Does what [`Self::get`] does, but waits up to `limit` for the authority.
    pub async fn wait(&self, id: &SpiffeId, limit: Duration) -> Result<Arc<Identity>, WaitError> {
        let Some(entry) = self.shared.entries.load().get(id).cloned() else {
            return Err(WaitError::Unknown(id.clone()));
        };
        let mut changes = entry.changes();
        let usable = async {
            loop {
                if let Some(identity) = entry.usable() {
                    return Some(identity);
                }
                // It may have been abandoned before we began to listen for changes.
                if entry.is_abandoned() || changes.changed().await.is_err() {
                    return None;
                }
            }
        };
        match tokio::time::timeout(limit, usable).await {
            Ok(Some(identity)) => Ok(identity),
            Ok(None) => Err(WaitError::Unknown(id.clone())),
            Err(_elapsed) => Err(WaitError::TimedOut {
                id: id.clone(),
                waited: limit,
                last_error: entry.last_error(),
            }),
        }
    }

    /// Returns the state of every local identity, sorted, for the operator.
    pub fn status(&self) -> Vec<CertStatus> {
        let now = self.shared.clock.now();
        let entries = self.shared.entries.load();
        let mut status: Vec<_> = entries.values().map(|entry| entry.status(now)).collect();
        status.sort_unstable_by(|a, b| a.identity.cmp(&b.identity));
        status
    }

    /// Judges peers by `bundle` from now on. Sessions made under the old roots cannot be resumed. The caller must check
    /// live connections again, see [`Self::roots_changed`]. Returns whether the roots changed; the same bundle again
    /// changes nothing.
    pub fn set_roots(&self, bundle: TrustBundle) -> bool {
        self.shared.set_roots(bundle)
    }

    /// Returns the roots by which peers are judged.
    pub fn roots(&self) -> Arc<TrustBundle> {
        self.shared.trust.load().bundle.clone()
    }

    /// Returns a receiver for the generation of the roots. After each change, every live connection must be checked
    /// with [`Self::still_vouched`].
    pub fn roots_changed(&self) -> watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// Judges a chain that a peer presented earlier, by the roots and the time of now.
    pub fn still_trusted(&self, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
        let trust = self.shared.trust.load();
        let now = self.shared.clock.now();
        Ok(verify::verify_in_any_role(&trust.bundle, chain, now)?.svid.id)
    }
}

impl Drop for CertStore {
    fn drop(&mut self) {
        for entry in self.shared.entries.load().values() {
            entry.abandon();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn set_roots(&self, bundle: TrustBundle) -> bool {
        let claims = lock(&self.claims);
        let is_new = *self.trust.load().bundle != bundle;
        if is_new {
            self.put_in_force(&claims, Arc::new(bundle));
        }
        is_new
    }

    /// Begins a new generation of trust, by which everything is judged again.
    fn put_in_force(&self, _claims: &MutexGuard<'_, Claims>, bundle: Arc<TrustBundle>) {
        let generation = self.trust.load().generation + 1;
        let trust = Trust { bundle, generation, clock: self.clock.clone() };
        self.trust.store(Arc::new(trust.clone()));
        for entry in self.entries.load().values() {
            let Some(current) = entry.current() else { continue };
            match current.with_trust(trust.clone()) {
                Ok(identity) => entry.replace(Arc::new(identity)),
                Err(error) => {
                    tracing::error!(identity = %entry.id, %error, "dropped a certificate that cannot be used with the new roots");
                    entry.drop_certificate();
                }
            }
            let now = self.clock.now();
            if verify::verify_in_any_role(&trust.bundle, current.chain(), now).is_err() {
                // Peers with the same roots refuse this certificate; the authority may issue from a new root by now.
                entry.renew_at(Next::At(now));
            }
        }
        tracing::info!(generation, "trust changed");
        self.generation.send_replace(generation);
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Locks `mutex` even if another holder has panicked: every change under a lock is complete or absent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
