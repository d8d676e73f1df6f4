//! Which pods run on which node now.

use std::sync::Arc;

use sluice_mesh::Snapshot;
use sluice_spiffe::SpiffeId;
use tokio::sync::watch;

use crate::Pending;

/// Whether a pod of some identity runs on some node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// Yes, now.
    Here,
    /// No, only on other nodes.
    Elsewhere,
    /// No, on no node at all.
    Nowhere,
    /// No, on no node at all, and no other pod is known on that node either.
    UnknownNode,
    /// Nothing is known of any pod yet.
    Unknown,
}

/// Knows which pods run on which node now. A pod that has ended, or is gone, runs nowhere.
pub trait Placement: Send + Sync {
    /// Returns whether a pod of identity `id` runs on `node`.
    fn runs_on<'a>(&'a self, id: &'a SpiffeId, node: &'a str) -> Pending<'a, Placed>;

    /// Returns whether anything is known at all; otherwise nothing is issued.
    fn is_known(&self) -> bool;
}

/// A placement read from the state of the mesh, whatever source that comes from.
///
/// A pod need not be enrolled: its node holds its identity whether or not the mesh carries its traffic.
#[derive(Debug, Clone)]
pub struct SnapshotPlacement(pub watch::Receiver<Option<Arc<Snapshot>>>);

// === impl SnapshotPlacement ===

impl SnapshotPlacement {
    fn look(&self, id: &SpiffeId, node: &str) -> Placed {
        // Cloned, so that a long list does not hold up its writer.
        let Some(snapshot) = self.0.borrow().clone() else { return Placed::Unknown };
        let (mut node_known, mut elsewhere) = (false, false);
        for member in snapshot.members() {
            let on_node = member.workload.node == node;
            let same = member.workload.identity == *id;
            if on_node && same {
                return Placed::Here;
            }
            node_known |= on_node;
            elsewhere |= same;
        }
        match (elsewhere, node_known) {
            (true, _) => Placed::Elsewhere,
            (false, true) => Placed::Nowhere,
            (false, false) => Placed::UnknownNode,
        }
    }
}

impl Placement for SnapshotPlacement {
    fn runs_on<'a>(&'a self, id: &'a SpiffeId, node: &'a str) -> Pending<'a, Placed> {
        Box::pin(std::future::ready(self.look(id, node)))
    }

    fn is_known(&self) -> bool {
        self.0.borrow().is_some()
    }
}
