//! State that all workers share.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use sluice_kernel::SocketTable;
use sluice_mesh::{Snapshot, WorkloadUid};
use sluice_tls::CertStore;

use crate::{
    live::{Facts, Listed, Live, LiveTable},
    local::{Links, OPENING},
    series::SeriesTable,
    stats::StatsTable,
    turns::Turns,
};

/// Most handshakes at once for connections of a pod to one destination, unless they take long. Of a burst, the first are
/// served sooner if not all handshakes are begun before one is complete; so many are enough to keep both agents busy.
const HANDSHAKES: usize = 4;
/// How long a pod's own agent may take to capture it once it is in the mesh. Until then its plaintext is judged like
/// a stranger's: otherwise a pod that joins a PERMISSIVE mesh would lose connections.
const CAPTURE_TIME: Duration = Duration::from_secs(5);

/// State that all workers share. Each part is replaced as a whole or is a counter; the byte path takes no locks.
#[derive(Debug)]
pub struct Shared {
    snapshot: ArcSwap<Snapshot>,
    /// Pods that recent snapshots brought into the mesh, and when.
    newcomers: ArcSwap<HashMap<WorkloadUid, Instant>>,
    /// Certificates of the local identities.
    pub certificates: Arc<CertStore>,
    /// Marks on sockets, kept by the kernel.
    pub sockets: SocketTable,
    /// Open connections.
    pub live: LiveTable,
    /// Sums over connections, by who talks with whom.
    pub series: SeriesTable,
    /// Counts of what each pod's connections turned out to be.
    pub stats: StatsTable,
    /// Handshakes whose two ends may both be in this process.
    pub(crate) links: Links,
    /// Limits on how many streams are being opened at once between pods of this node.
    pub(crate) openings: Turns,
    /// Limits on how many handshakes are made at once for connections that wait for them.
    pub(crate) handshakes: Turns,
    turn: AtomicUsize,
}

// === impl Shared ===

impl Shared {
    /// Makes the state for this many workers.
    pub fn new(
        snapshot: Arc<Snapshot>,
        certificates: Arc<CertStore>,
        sockets: SocketTable,
        workers: usize,
    ) -> Self {
        Self {
            snapshot: ArcSwap::new(snapshot),
            newcomers: ArcSwap::default(),
            certificates,
            sockets,
            live: LiveTable::new(workers),
            series: SeriesTable::new(workers),
            stats: StatsTable::default(),
            links: Links::default(),
            openings: Turns::new(OPENING),
            handshakes: Turns::new(HANDSHAKES),
            turn: AtomicUsize::new(0),
        }
    }

    /// Lists an open connection of the given worker.
    pub(crate) fn list(&self, worker: usize, facts: Facts) -> Listed {
        let series = self.series.of(worker, &self.snapshot.load(), &facts);
        series.opened();
        self.live.list(worker, Live::of(facts, series))
    }

    /// Returns the snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Replaces the snapshot in force. To be called from one thread only, and to be followed by [`Shared::recheck`].
    pub fn set_snapshot(&self, snapshot: Arc<Snapshot>) {
        let now = Instant::now();
        let before = self.snapshot.load();
        let mut newcomers: HashMap<_, _> = self.newcomers.load().as_ref().clone();
        newcomers.retain(|_, since| now.duration_since(*since) < CAPTURE_TIME);
        for member in snapshot.members().iter().filter(|member| member.workload.in_mesh) {
            let uid = &member.workload.uid;
            if !before.member(uid).is_some_and(|member| member.workload.in_mesh) {
                newcomers.insert(uid.clone(), now);
            }
        }
        self.newcomers.store(Arc::new(newcomers));
        self.snapshot.store(snapshot);
    }

    /// Returns whether what comes from `client` to the pod's address `local` must be mesh TLS:
    /// [`Snapshot::expects_mesh`] says so, and the client's pod, where it is known, has been in the mesh long enough
    /// for its own agent to have captured it.
    pub(crate) fn must_speak_mesh(
        &self,
        snapshot: &Snapshot,
        client: IpAddr,
        local: SocketAddr,
    ) -> bool {
        if !snapshot.expects_mesh(client, local) {
            return false;
        }
        let newcomers = self.newcomers.load();
        snapshot
            .member_at(client)
            .and_then(|member| newcomers.get(&member.workload.uid))
            .is_none_or(|since| since.elapsed() >= CAPTURE_TIME)
    }

    /// Returns the next number of a count that spreads connections over a service's endpoints.
    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}
