//! Tells the kernel about mesh peers, and ends connections to them that were made before that.
//!
//! Such a connection was never authenticated, and after enrolment the guard lets none of its bytes
//! out. Destroying it gives the application an error, which every application handles by connecting
//! again, through the mesh. Left alone, the connection would hang until the application's own patience
//! ends.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use sluice_mesh::WorkloadUid;
use sluice_sys::{
    Netns,
    diag::{self, Connections},
};

use super::PodManager;
use crate::{Hooks, LocalPod, PodEvent, exempt::Exempt, record::Waiting};

/// Which connections of a pod may be the agent's own.
enum Standing<'a> {
    /// It was just captured: only those that wait in the agent's listeners. Like them, an application's that it has
    /// not accepted, or has closed, is held by nobody; the cookies are of those that were there before.
    Fresh(&'a HashSet<u64>),
    /// The workers serve it: those that this process holds, and those that nobody holds.
    Settled,
}

/// Connections that are not to be destroyed.
struct Spared<'a> {
    standing: Standing<'a>,
    /// What the mesh leaves alone of the pod.
    exempt: &'a Exempt,
    /// Destinations that every pod reaches without the mesh.
    direct: &'a HashSet<SocketAddr>,
}

impl<H: Hooks> PodManager<H> {
    /// Tells the kernel the present peers, and destroys connections from pods that are already
    /// captured to new peers.
    pub(super) fn set_peers(&mut self) {
        let Some(wanted) = self.wanted_peers.clone() else { return };
        if self.known_peers.as_ref() == Some(&wanted) {
            return;
        }
        match self.hooks.set_peers(&wanted) {
            Ok(fill) => {
                let nearly_full = fill.nearly_full();
                if nearly_full && !self.peers_nearly_full {
                    self.events.push(PodEvent::PeersNearlyFull(fill));
                }
                self.peers_nearly_full = nearly_full;
                // What an earlier agent told the kernel is unknown, and so it is unknown which peers
                // are new.
                if let Some(known) = &self.known_peers {
                    self.cut(&wanted.difference(known).copied().collect());
                }
                self.known_peers = Some(wanted);
            }
            Err(error) => self.events.push(PodEvent::PeersFailed { reason: error.to_string() }),
        }
    }

    fn cut(&mut self, new: &HashSet<IpAddr>) {
        if new.is_empty() {
            return;
        }
        // Agents of other nodes may know the new peers already, and speak to ours on their behalf:
        // the agent's own sockets are spared.
        let settled = self.pods.values().filter_map(|record| record.captured.as_ref());
        let settled: Vec<_> = settled
            .filter(|captured| captured.waiting.is_none())
            .map(|captured| Arc::clone(&captured.pod))
            .collect();
        for pod in settled {
            let outcome = self.destroy(&pod, new, Standing::Settled);
            if let Some(connections) = self.count_destroyed(&pod.uid, outcome).filter(|n| *n > 0) {
                self.events.push(PodEvent::Cut { pod: pod.uid.clone(), connections });
            }
        }
    }

    /// Cuts the older connections of pods that were just captured, then gives the workers their
    /// listeners.
    pub(super) fn hand_over(&mut self) {
        let mut waiting = BTreeMap::new();
        for (uid, record) in &mut self.pods {
            if let Some(captured) = &mut record.captured
                && let Some(begun) = captured.waiting.take()
            {
                waiting.insert(uid.clone(), (Arc::clone(&captured.pod), begun));
            }
        }
        let peers = self.wanted_peers.clone().unwrap_or_default();
        for (uid, (pod, Waiting { listeners, unowned })) in waiting {
            let outcome = self.destroy(&pod, &peers, Standing::Fresh(&unowned));
            let destroyed = self.count_destroyed(&uid, outcome).unwrap_or_default();
            self.workers.add(pod, listeners);
            self.events.push(PodEvent::Captured { pod: uid, adopted: false, destroyed });
        }
    }

    /// Destroys the connections of a captured pod to mesh peers that are no longer exempt. Returns
    /// how many.
    pub(super) fn cut_unexempt(&mut self, uid: &WorkloadUid) -> usize {
        let captured = self.captured(uid).filter(|captured| captured.waiting.is_none());
        let Some(pod) = captured.map(|captured| Arc::clone(&captured.pod)) else { return 0 };
        let peers = self.known_peers.clone().or_else(|| self.wanted_peers.clone());
        let peers = peers.unwrap_or_default();
        let outcome = self.destroy(&pod, &peers, Standing::Settled);
        self.count_destroyed(uid, outcome).unwrap_or_default()
    }

    /// Destroys the connections of a pod to `peers`, except the agent's own and those that are exempt.
    fn destroy(
        &self,
        pod: &LocalPod,
        peers: &HashSet<IpAddr>,
        standing: Standing<'_>,
    ) -> sluice_sys::Result<usize> {
        let none = (Exempt::default(), HashSet::new());
        let exempt = self.captured(&pod.uid).and_then(|captured| captured.exempt.as_ref());
        let spared = Spared {
            standing,
            exempt: exempt.unwrap_or(&none.0),
            direct: self.known_direct.as_ref().unwrap_or(&none.1),
        };
        destroy(pod, peers, &spared)
    }

    fn count_destroyed(
        &mut self,
        uid: &WorkloadUid,
        outcome: sluice_sys::Result<usize>,
    ) -> Option<usize> {
        match outcome {
            Ok(count) => {
                let captured = self.pods.get_mut(uid).and_then(|record| record.captured.as_mut());
                if let Some(captured) = captured {
                    captured.destroyed = captured.destroyed.saturating_add(count);
                }
                Some(count)
            }
            Err(error) => {
                let reason = error.to_string();
                self.events.push(PodEvent::CutFailed { pod: uid.clone(), reason });
                None
            }
        }
    }
}

/// Cookies of the connections in a namespace that nobody holds. When they cannot be listed, none of them is ended.
pub(super) fn unowned(netns: &Netns) -> HashSet<u64> {
    match Connections::list(netns, |connection| connection.inode == 0) {
        Ok(found) => found.to_vec().iter().map(|connection| connection.cookie).collect(),
        Err(error) => {
            tracing::warn!(%error, "connections that a pod has not accepted yet may hang");
            HashSet::new()
        }
    }
}

/// Destroys the pod's connections to `peers` that are not spared. Its own addresses are peers too,
/// but what it says to itself never leaves it.
fn destroy(
    pod: &LocalPod,
    peers: &HashSet<IpAddr>,
    spared: &Spared<'_>,
) -> sluice_sys::Result<usize> {
    let mut found = Connections::list(&pod.netns, |connection| {
        let remote = connection.remote;
        peers.contains(&remote.ip())
            && !pod.addresses.contains(&remote.ip())
            && !spared.direct.contains(&remote)
            && !spared.exempt.leaves(connection)
    })?;
    match spared.standing {
        Standing::Fresh(older) => {
            found.retain(|connection| connection.inode != 0 || older.contains(&connection.cookie));
        }
        Standing::Settled => {
            found.retain(|connection| connection.inode != 0);
            if !found.is_empty() {
                let Some(own) = own_sockets() else { return Ok(0) };
                found.retain(|connection| !own.contains(&connection.inode));
            }
        }
    }
    found.destroy()
}

/// To be read after the connections: a socket that an agent makes in between is known as its own.
fn own_sockets() -> Option<HashSet<u32>> {
    let failed = |error: &_| tracing::warn!(%error, "older connections to mesh peers will hang");
    diag::own_sockets().inspect_err(failed).ok()
}
