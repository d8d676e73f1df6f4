//! The connections that are open now: who they join, how much they carried, and how to end them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Waker},
    time::Instant,
};

use futures_util::task::AtomicWaker;
use sluice_mesh::WorkloadUid;
use sluice_spiffe::SpiffeId;
use sluice_tls::CertificateDer;
use sluice_wire::ResetReason;

use crate::series::{Flags, Series};

/// Which way a connection crosses its pod's edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Opened by the pod.
    Outbound,
    /// Opened towards the pod.
    Inbound,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// Mutual TLS between two agents.
    MutualTls,
    /// Within one agent, from one of its pods to another, after a mutual-TLS handshake between the two
    /// has proved both identities; or from a pod to itself.
    Local,
    /// As the application sent it.
    Plaintext,
}

/// What is known about a connection from its first moment.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Which way it crosses the edge of `pod`.
    pub direction: Direction,
    /// How it was protected at first; see [`Live::transport`].
    pub transport: Transport,
    /// The local pod.
    pub pod: WorkloadUid,
    /// The client's address, as the server's application sees it.
    pub source: SocketAddr,
    /// The client's identity; from its certificate, or from enrolment when it is local.
    pub source_identity: Option<SpiffeId>,
    /// The address that the client asked for.
    pub requested: SocketAddr,
    /// The server's address.
    pub destination: SocketAddr,
    /// The server's identity; from its certificate, or from enrolment when it is local.
    pub destination_identity: Option<SpiffeId>,
}

/// An open connection.
#[derive(Debug)]
pub struct Live {
    /// What is known from the first moment and does not change.
    pub facts: Facts,
    /// When it was opened.
    pub opened: Instant,
    sent: AtomicU64,
    received: AtomicU64,
    /// The certificates that the peer's agent proved its identity with, leaf first. `None` in plaintext, and at the
    /// client's side until it has a session.
    proof: Mutex<Option<Proof>>,
    /// The series that it adds to; `None` for a connection that was never listed.
    series: Option<Arc<Series>>,
    /// Bytes sent and received that were already added to `series`.
    reported: [AtomicU64; 2],
    /// How it ended: a [`Flags`].
    flags: AtomicU8,
    /// Whether it is no longer carried by its session, but in this agent's memory.
    local: AtomicBool,
    /// The code of a [`ResetReason`] once the connection must end, else 0.
    cut: AtomicU8,
    waker: AtomicWaker,
}

/// All open connections of the agent.
#[derive(Debug, Default)]
pub struct LiveTable {
    /// One shard per worker, so that workers never contend on the connection path.
    shards: Vec<Arc<Shard>>,
}

/// Keeps a connection listed until this is dropped.
#[derive(Debug)]
pub(crate) struct Listed {
    live: Arc<Live>,
    place: Option<(Arc<Shard>, usize)>,
}

/// A chain of certificates, leaf first.
pub(crate) type Proof = Arc<[CertificateDer<'static>]>;

type Shard = Mutex<slab::Slab<Arc<Live>>>;

fn lock(shard: &Shard) -> MutexGuard<'_, slab::Slab<Arc<Live>>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Live ===

impl Live {
    pub(crate) fn new(facts: Facts) -> Self {
        Self {
            facts,
            opened: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            proof: Mutex::new(None),
            series: None,
            reported: Default::default(),
            flags: AtomicU8::new(0),
            local: AtomicBool::new(false),
            cut: AtomicU8::new(0),
            waker: AtomicWaker::new(),
        }
    }

    /// Returns how the connection is protected now.
    pub fn transport(&self) -> Transport {
        if self.local.load(Ordering::Relaxed) { Transport::Local } else { self.facts.transport }
    }

    pub(crate) fn set_local(&self) {
        self.local.store(true, Ordering::Relaxed);
    }

    /// Makes a connection that adds to `series`.
    pub(crate) fn of(facts: Facts, series: Arc<Series>) -> Self {
        Self { series: Some(series), ..Self::new(facts) }
    }

    pub(crate) fn series(&self) -> Option<&Arc<Series>> {
        self.series.as_ref()
    }

    /// Returns the bytes sent and received since the last call.
    pub(crate) fn take_unreported(&self) -> (u64, u64) {
        let [sent, received] = &self.reported;
        let since = |total: u64, reported: &AtomicU64| {
            total.saturating_sub(reported.fetch_max(total, Ordering::Relaxed))
        };
        (since(self.sent(), sent), since(self.received(), received))
    }

    /// Notes how the connection ended.
    pub(crate) fn end_as(&self, flags: Flags) {
        self.flags.store(flags as u8, Ordering::Relaxed);
    }

    pub(crate) fn flags(&self) -> Flags {
        let flags = usize::from(self.flags.load(Ordering::Relaxed));
        Flags::ALL.get(flags).copied().unwrap_or_default()
    }

    /// Returns the bytes from client to server so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Returns the bytes from server to client so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Takes bytes back that were counted and have reached nobody.
    pub(crate) fn take_back_sent(&self, bytes: usize) {
        self.sent.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// As [`Live::take_back_sent`].
    pub(crate) fn take_back_received(&self, bytes: usize) {
        self.received.fetch_sub(bytes as u64, Ordering::Relaxed);
    }

    /// Notes what the peer's agent proved itself by. To be called before the proof is confirmed by the trust
    /// of now: a change of trust from here on finds it.
    pub(crate) fn rests_on(&self, proof: &Proof) {
        *self.proof.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(proof));
    }

    pub(crate) fn proof(&self) -> Option<Proof> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes the connection end soon. If there are several reasons, the first one counts.
    pub fn cut(&self, reason: ResetReason) {
        if self.cut.compare_exchange(0, reason as u8, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.waker.wake();
        }
    }

    /// Returns why the connection must end. If it must not, the task is woken once it must.
    pub(crate) fn poll_cut(&self, cx: &Context<'_>) -> Option<ResetReason> {
        self.register(cx.waker());
        match self.cut.load(Ordering::Acquire) {
            0 => None,
            code => Some(ResetReason::from_code(code)),
        }
    }

    fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }
}

// === impl LiveTable ===

impl LiveTable {
    /// Makes a table for this many workers.
    pub fn new(workers: usize) -> Self {
        Self { shards: (0..workers.max(1)).map(|_| Arc::default()).collect() }
    }

    pub(crate) fn list(&self, worker: usize, live: Live) -> Listed {
        let live = Arc::new(live);
        let shard = self.shards.get(worker);
        let key = shard.map(|shard| lock(shard).insert(Arc::clone(&live)));
        Listed { live, place: shard.cloned().zip(key) }
    }

    /// Returns every open connection.
    pub fn all(&self) -> Vec<Arc<Live>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(lock(shard).iter().map(|(_, live)| Arc::clone(live)));
        }
        all
    }
}

// === impl Listed ===

impl std::ops::Deref for Listed {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some((shard, key)) = &self.place {
            lock(shard).try_remove(*key);
        }
        if let Some(series) = &self.live.series {
            series.closed(&self.live);
        }
    }
}
