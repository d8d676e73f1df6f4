//! What all workers read.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use sluice_kernel::SocketTable;
use sluice_mesh::Snapshot;
use sluice_tls::CertStore;

use crate::{live::LiveTable, stats::StatsTable};

/// What all workers read. Every part is replaced whole or counts; no lock is on the byte path.
#[derive(Debug)]
pub struct Shared {
    /// The mesh as it is now.
    pub snapshot: ArcSwap<Snapshot>,
    /// Certificates of the local identities.
    pub certificates: Arc<CertStore>,
    /// Marks on sockets, kept by the kernel.
    pub sockets: SocketTable,
    /// Open connections.
    pub live: LiveTable,
    /// What connections turned out to be.
    pub stats: StatsTable,
    turn: AtomicUsize,
}

// === impl Shared ===

impl Shared {
    /// Everything that workers need, for this many of them.
    pub fn new(
        snapshot: Arc<Snapshot>,
        certificates: Arc<CertStore>,
        sockets: SocketTable,
        workers: usize,
    ) -> Self {
        Self {
            snapshot: ArcSwap::new(snapshot),
            certificates,
            sockets,
            live: LiveTable::new(workers),
            stats: StatsTable::default(),
            turn: AtomicUsize::new(0),
        }
    }

    /// A number that counts up, to spread connections over a service's endpoints.
    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}
