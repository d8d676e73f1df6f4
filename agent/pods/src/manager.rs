//! Makes the pods of this node what a snapshot says, and keeps them so.

mod adoption;
mod audit;
mod cut;
mod exempt;
mod locate;
mod verify;

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Instant,
};

use sluice_kernel::Enrolled;
use sluice_mesh::{Snapshot, WorkloadUid};

use self::adoption::Predecessors;
use crate::{
    Departure, Hooks, LocalPod, PodEvent, PodState, PodStatus, Workers,
    declared::declared_on,
    enrol,
    exempt::direct,
    located::{Located, default_processes},
    record::{Captured, Enrolment, Record, Waiting},
    refusal::Refusal,
};

pub use verify::Verdict;

/// Enrols and withdraws the pods of one node. It belongs to one control thread, which stays in the
/// node's namespace; every method may take a few milliseconds per pod.
pub struct PodManager<H> {
    hooks: H,
    workers: Arc<dyn Workers>,
    /// Number of workers, each of which gets listeners for every pod.
    worker_count: usize,
    pods: BTreeMap<WorkloadUid, Record>,
    /// Namespaces that an earlier agent enrolled and that no pod of ours has taken over, by cookie;
    /// `None` until they could be read.
    inherited: Option<BTreeMap<u64, Enrolled>>,
    predecessors: Predecessors,
    /// Namespaces that the hooks would not let go of.
    unwanted: BTreeMap<u64, (Option<WorkloadUid>, Departure)>,
    /// Peers that the kernel is to be told; `None` until there is a snapshot, and until then the
    /// kernel keeps what an earlier agent told it.
    wanted_peers: Option<HashSet<IpAddr>>,
    /// Peers that the kernel has been told; `None` until it has been told once.
    known_peers: Option<HashSet<IpAddr>>,
    peers_nearly_full: bool,
    /// Destinations that every pod reaches without the mesh, as wanted and as known; `None` as for
    /// the peers.
    wanted_direct: Option<HashSet<SocketAddr>>,
    known_direct: Option<HashSet<SocketAddr>>,
    /// Path of the node's process list.
    processes: PathBuf,
    /// Namespaces that the present pass has found by the pods' processes.
    located: Located,
    events: Vec<PodEvent>,
    frozen: bool,
}

impl<H: Hooks> PodManager<H> {
    /// Makes a manager, which has done nothing yet. Pods that an earlier agent enrolled stay
    /// captured.
    pub fn new(hooks: H, workers: Arc<dyn Workers>, worker_count: usize) -> Self {
        Self {
            hooks,
            workers,
            worker_count,
            pods: BTreeMap::new(),
            inherited: None,
            predecessors: Predecessors::Unjudged,
            unwanted: BTreeMap::new(),
            wanted_peers: None,
            known_peers: None,
            peers_nearly_full: false,
            wanted_direct: None,
            known_direct: None,
            processes: default_processes(),
            located: Located::default(),
            events: Vec::new(),
            frozen: false,
        }
    }

    /// Makes the pods of `node` what `snapshot` says. Pass only a snapshot that a source has really read:
    /// one that is empty for lack of knowledge would set every pod free. A provisional one only adds:
    /// pods and peers that it does not name stay as they are.
    pub fn reconcile(&mut self, snapshot: &Snapshot, node: &str) -> Vec<PodEvent> {
        if self.frozen {
            return Vec::new();
        }
        self.retry_unwanted();
        let declared = declared_on(snapshot, node);
        let is_provisional = snapshot.is_provisional();
        let departed = |uid: &&WorkloadUid| !is_provisional && !declared.contains_key(*uid);
        let departed: Vec<_> = self.pods.keys().filter(departed).cloned().collect();
        for uid in departed {
            self.withdraw(&uid, Departure::Undeclared);
            self.pods.remove(&uid);
        }
        self.declare(declared);
        self.locate_due();
        let peers = snapshot.protected_addresses().collect();
        if is_provisional {
            self.read_inheritance();
            self.wanted_peers = self.provisional_peers(peers);
        } else {
            self.settle_inheritance();
            self.predecessors.judge();
            self.wanted_peers = Some(peers);
        }
        self.enrol_due();
        self.wanted_direct = Some(direct(snapshot));
        self.exempt_changed();
        // Before the peers: a direct destination must be direct from the moment its address is a
        // peer.
        self.set_direct();
        self.set_peers();
        self.hand_over();
        self.retire_predecessors();
        self.take_events()
    }

    /// Stops all changes: another agent takes the node over, or nothing is left to be done.
    pub fn freeze(&mut self) {
        self.frozen = true;
    }

    /// Goes on where [`PodManager::freeze`] left off. The next audit puts the pods right; the peers are those of the
    /// other agent until there is a snapshot, which the caller has to give anew if one came meanwhile.
    pub fn unfreeze(&mut self) {
        self.frozen = false;
        (self.wanted_peers, self.known_peers) = (None, None);
        (self.wanted_direct, self.known_direct) = (None, None);
    }

    /// Returns the pods that are no longer to be captured, but that the hooks have not released.
    pub fn lingering(&self) -> impl Iterator<Item = &WorkloadUid> {
        self.unwanted.values().filter_map(|(uid, _)| uid.as_ref())
    }

    /// Returns the status of every pod that is declared for this node.
    pub fn status(&self) -> Vec<PodStatus> {
        self.pods.values().map(|record| self.status_of(record)).collect()
    }

    fn status_of(&self, record: &Record) -> PodStatus {
        let Record { declared, captured, trouble, .. } = record;
        let reason = trouble.as_ref().map(|trouble| trouble.reason.clone());
        let state = match (captured, reason) {
            (Some(_), None) => PodState::Captured,
            (Some(_), Some(reason)) => PodState::Impaired { reason },
            (None, reason) => PodState::Refused { reason: reason.unwrap_or_default() },
        };
        PodStatus {
            uid: declared.uid.clone(),
            name: declared.name.clone(),
            account: declared.account.clone(),
            addresses: declared.addresses.clone(),
            was_running: captured.as_ref().is_some_and(|captured| captured.was_running),
            state,
            enrolled_at: captured.as_ref().map(|captured| captured.pod.enrolled_at),
            counters: captured
                .as_ref()
                .and_then(|captured| self.hooks.counters(captured.pod.cookie).ok()),
            connections_destroyed: captured.as_ref().map_or(0, |captured| captured.destroyed),
        }
    }

    /// Enrols every pod that is not as declared and is due for an attempt.
    fn enrol_due(&mut self) {
        let now = Instant::now();
        let due = |(uid, record): (&WorkloadUid, &Record)| record.is_due(now).then(|| uid.clone());
        let due: Vec<_> = self.pods.iter().filter_map(due).collect();
        for uid in due {
            match self.attempt(&uid) {
                Ok(enrolment) => self.enrolled(&uid, enrolment, None),
                Err(refusal) => self.troubled(&uid, refusal.to_string()),
            }
        }
    }

    fn attempt(&mut self, uid: &WorkloadUid) -> Result<Enrolment, Refusal> {
        let Some(record) = self.pods.get_mut(uid) else { return Err(Refusal::NoNamespace) };
        let (declared, exempt) = (record.declared.clone(), record.exempt.clone());
        record.cookie = None;
        let present = record.captured.as_ref().map(|captured| &captured.pod.netns);
        let netns = enrol::open(&declared, &self.located, present)?;
        let cookie = netns.cookie();
        record.cookie = Some(cookie);
        let mut captured = self.captured_pods();
        if let Some(owner) = captured.find(|pod| pod.cookie == cookie && pod.uid != *uid) {
            return Err(Refusal::Taken(owner.uid.clone()));
        }
        drop(captured);
        let mut checked = enrol::check(&declared, netns)?;
        if self.captured(uid).is_some_and(|captured| captured.pod.cookie != cookie) {
            self.withdraw(uid, Departure::NamespaceReplaced);
        }
        let is_inherited = self.inherited.as_ref().is_some_and(|all| all.contains_key(&cookie));
        if self.captured(uid).is_none() && !is_inherited {
            checked.unowned = cut::unowned(&checked.netns);
        }
        let outcome = enrol::enrol(&self.hooks, self.worker_count, &declared, &exempt, checked);
        if matches!(outcome, Err(Refusal::Hooks(_)))
            && let Some(captured) =
                self.pods.get_mut(uid).and_then(|record| record.captured.as_mut())
        {
            captured.is_half_renewed = true;
        }
        outcome
    }

    /// Records that the hooks have taken a pod over; `mended` says what an audit had found.
    fn enrolled(&mut self, uid: &WorkloadUid, enrolment: Enrolment, mended: Option<String>) {
        let Enrolment { pod, listeners, exempt, unowned } = enrolment;
        let cookie = pod.cookie;
        self.unwanted.remove(&cookie);
        let adopted = self.inherited.as_mut().is_some_and(|all| all.remove(&cookie).is_some());
        let Some(record) = self.pods.get_mut(uid) else { return };
        let previous = record.captured.take();
        let is_renewal = previous.is_some();
        let destroyed = previous.as_ref().map_or(0, |captured| captured.destroyed);
        let was_running = match &previous {
            Some(captured) => captured.was_running,
            None => !adopted && record.declared.netns.is_none(),
        };
        let mut captured = Captured {
            pod: Arc::new(pod),
            declared: record.declared.clone(),
            destroyed,
            was_running,
            exempt: exempt.is_ok().then(|| record.exempt.clone()),
            is_half_renewed: false,
            waiting: None,
        };
        record.trouble = None;
        let pod = uid.clone();
        if is_renewal || adopted {
            self.workers.add(Arc::clone(&captured.pod), listeners);
            self.events.push(match mended {
                Some(found) => PodEvent::Repaired { pod, found },
                None if is_renewal => PodEvent::Renewed { pod },
                None => PodEvent::Captured { pod, adopted, destroyed },
            });
        } else {
            captured.waiting = Some(Waiting { listeners, unowned });
        }
        record.captured = Some(captured);
    }

    /// Records why a pod is not as declared, and reports it if the reason is new.
    fn troubled(&mut self, uid: &WorkloadUid, reason: String) {
        let Some(record) = self.pods.get_mut(uid) else { return };
        let is_captured = record.captured.is_some();
        if record.fail(reason.clone(), Instant::now()) {
            let pod = uid.clone();
            self.events.push(if is_captured {
                PodEvent::Impaired { pod, reason }
            } else {
                PodEvent::Refused { pod, reason }
            });
        }
    }

    /// Undoes the enrolment of a pod, if there is one; the record stays.
    fn withdraw(&mut self, uid: &WorkloadUid, departure: Departure) {
        let captured = self.pods.get_mut(uid).and_then(|record| record.captured.take());
        if let Some(Captured { pod, waiting, .. }) = captured {
            self.release(pod.cookie, Some(uid.clone()), departure);
            // Listeners that were never handed to the workers close here.
            drop(waiting);
            self.workers.remove(&pod);
        }
    }

    /// Makes the hooks release a namespace. If that fails, it is tried again later.
    fn release(&mut self, cookie: u64, pod: Option<WorkloadUid>, departure: Departure) {
        match self.hooks.withdraw(cookie) {
            Ok(()) | Err(sluice_kernel::Error::NotEnrolled(_)) => {
                self.events.push(PodEvent::Withdrawn { pod, cookie, departure });
            }
            Err(error) => {
                self.unwanted.insert(cookie, (pod, departure));
                self.events.push(PodEvent::WithdrawFailed { cookie, reason: error.to_string() });
            }
        }
    }

    fn retry_unwanted(&mut self) {
        for (cookie, (pod, departure)) in std::mem::take(&mut self.unwanted) {
            self.release(cookie, pod, departure);
        }
    }

    fn captured(&self, uid: &WorkloadUid) -> Option<&Captured> {
        self.pods.get(uid)?.captured.as_ref()
    }

    fn captured_pods(&self) -> impl Iterator<Item = &Arc<LocalPod>> {
        self.pods
            .values()
            .filter_map(|record| record.captured.as_ref())
            .map(|captured| &captured.pod)
    }

    fn take_events(&mut self) -> Vec<PodEvent> {
        self.located = Located::default();
        let events = std::mem::take(&mut self.events);
        events.iter().for_each(PodEvent::log);
        events
    }
}

#[cfg(test)]
mod tests;
