//! Identities and roots from a SPIRE agent's Delegated Identity API, over its admin socket.
//!
//! SPIRE makes the keys, renews certificates in its own time and pushes them. So there is one stream for each identity
//! of this node's pods, and one for the bundles. A stream that ends is opened again after a pause. What was received
//! last stays in use meanwhile.
//!
//! The SPIRE agent must list this agent's SPIFFE ID in `authorized_delegates`, and have registration entries whose
//! selectors are `k8s:ns` and `k8s:sa` (or fewer), because a pod is described to it by those two.

mod bundles;
mod stream;

use std::{
    collections::HashMap,
    future::Future,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use sluice_spiffe::{IdError, SpiffeId, TrustDomain, WorkloadName};
use sluice_tls::{CertRequest, IssueError, Issued, Issuer, Issuing, News};
use tokio::{sync::watch, task::AbortHandle};
use tonic::transport::{Channel, Endpoint};

use self::stream::Stream;
use crate::{Delivered, words::with_causes};

const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The first and the longest pause before a stream is opened again, before jitter.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// Why the SPIRE agent cannot be asked at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpireError {
    /// The path cannot be that of a socket.
    #[error("{} cannot be the path of the SPIRE agent's admin socket: {reason}", path.display())]
    Socket {
        /// What was configured.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The client of the SPIRE agent on this node.
#[derive(Debug)]
pub struct Spire {
    domain: TrustDomain,
    channel: Channel,
    streams: Mutex<HashMap<SpiffeId, Weak<Stream>>>,
    delivered: watch::Sender<Delivered>,
    bundles: AbortHandle,
}

/// Tells the store when something was pushed, and keeps the stream open.
struct Pushed(Arc<Stream>);

// === impl Spire ===

impl Spire {
    /// Follows the SPIRE agent behind the admin socket `socket` for workloads of `domain`, on the runtime that this is
    /// called in. The SPIRE agent need not be running yet.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(socket: &Path, domain: TrustDomain) -> Result<Self, SpireError> {
        let wrong = |reason| SpireError::Socket { path: socket.to_owned(), reason };
        let path = socket.to_str().ok_or_else(|| wrong("it is not UTF-8".to_owned()))?;
        let channel = Endpoint::from_shared(format!("unix://{path}"))
            .map_err(|error| wrong(with_causes("", &error)))?
            .connect_timeout(CONNECT_LIMIT)
            .connect_lazy();
        let delivered = watch::Sender::new(Delivered::default());
        let follow = bundles::follow(channel.clone(), domain.clone(), delivered.clone());
        let bundles = tokio::spawn(follow).abort_handle();
        Ok(Self { domain, channel, streams: Mutex::default(), delivered, bundles })
    }

    /// Returns a receiver for the bundles that SPIRE says to trust: that of our trust domain and those of federated
    /// ones.
    pub fn delivered(&self) -> watch::Receiver<Delivered> {
        self.delivered.subscribe()
    }

    /// Returns the namespace and service account by which SPIRE is asked for `id`, or why it cannot be asked.
    fn workload(&self, id: &SpiffeId) -> Result<WorkloadName, String> {
        if !id.is_in(&self.domain) {
            return Err(format!("it is not of trust domain {}", self.domain));
        }
        WorkloadName::of(id).ok_or_else(|| {
            "SPIRE is asked by namespace and service account, which only an identity of the form \
             /ns/<namespace>/sa/<service account> names"
                .to_owned()
        })
    }

    async fn take(&self, id: SpiffeId) -> Result<Issued, IssueError> {
        let refused = |rule| IssueError::Refused { id: id.clone(), rule };
        let unreachable =
            |words: &str| IssueError::Unreachable { id: id.clone(), source: words.into() };
        self.workload(&id).map_err(refused)?;
        let stream = self.streams().get(&id).and_then(Weak::upgrade);
        let stream = stream.ok_or_else(|| unreachable("no pod of this node has the identity"))?;
        // The bundle must come first, because the certificate is judged by it.
        let mut bundle = self.delivered();
        let known = bundle.wait_for(|delivered| !delivered.local.is_empty());
        tokio::select! {
            known = known => drop(known),
            () = stream.fails() => {}
        }
        stream.take(&id).await
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, HashMap<SpiffeId, Weak<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Issuer for Spire {
    fn issue(&self, request: CertRequest) -> Issuing<'_> {
        Box::pin(self.take(request.id))
    }

    fn follow(&self, id: &SpiffeId) -> Option<Box<dyn News>> {
        let workload = self.workload(id).ok()?;
        let stream = Stream::open(self.channel.clone(), id.clone(), &workload);
        let mut streams = self.streams();
        streams.retain(|_, stream| stream.strong_count() > 0);
        streams.insert(id.clone(), Arc::downgrade(&stream));
        Some(Box::new(Pushed(stream)))
    }
}

impl Drop for Spire {
    fn drop(&mut self) {
        self.bundles.abort();
    }
}

// === impl Pushed ===

impl News for Pushed {
    fn wait(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.0.newer())
    }
}

/// A trust domain as SPIRE names it: by its SPIFFE ID.
fn trust_domain(name: &str) -> Result<TrustDomain, IdError> {
    name.strip_prefix("spiffe://").unwrap_or(name).parse()
}

/// The pause before the next attempt when `failures` came before it; longer by up to a quarter at random, so that
/// the streams of a node do not return all at once.
fn pause_after(failures: u32) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE);
    let random = RandomState::new().build_hasher().finish() % 256;
    pause + pause.mul_f64(f64::from(u8::try_from(random).unwrap_or(0)) / 1024.0)
}

#[cfg(test)]
mod tests;
