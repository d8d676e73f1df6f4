//! Hooks and workers that record what is asked of them.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard},
};

use sluice_kernel::{
    CaptureState, DirectFill, Enrolled, Error, GuardState, PeerFill, Placed, PodCounters,
    PodExemptions, PodHooks, Removed,
};
use sluice_mesh::WorkloadUid;

use crate::{Hooks, LocalPod, PodManager, WorkerListeners, Workers};

/// Workers per pod in these tests.
pub(super) const WORKERS: usize = 2;

#[derive(Default)]
pub(super) struct Notes {
    /// Calls, in order.
    pub(super) calls: Vec<String>,
    pub(super) enrolled: BTreeMap<u64, Enrolled>,
    /// What agents with other maps left.
    pub(super) predecessors: BTreeMap<u64, Enrolled>,
    pub(super) peers: HashSet<IpAddr>,
    pub(super) exempt: BTreeMap<u64, PodExemptions>,
    pub(super) direct: Vec<SocketAddr>,
    pub(super) marked: usize,
    pub(super) served: BTreeMap<WorkloadUid, (Arc<LocalPod>, Vec<WorkerListeners>)>,
    /// What happens as soon as the next pod is captured.
    pub(super) once_captured: Option<Box<dyn FnOnce() + Send>>,
    /// Which calls fail.
    pub(super) failing: HashSet<&'static str>,
    pub(super) missing_hooks: Vec<&'static str>,
    pub(super) detached: HashSet<&'static str>,
    pub(super) capacity: usize,
}

/// A node whose hooks and workers only record and pretend.
#[derive(Clone, Default)]
pub(super) struct Fake(Arc<Mutex<Notes>>);

impl Fake {
    pub(super) fn manager(&self) -> PodManager<Self> {
        self.notes().capacity = 100;
        PodManager::new(self.clone(), Arc::new(self.clone()), WORKERS)
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap()
    }

    /// Returns the calls since the last time this was called.
    pub(super) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.notes().calls)
    }

    pub(super) fn fail(&self, call: &'static str, on: bool) {
        let mut notes = self.notes();
        if on {
            notes.failing.insert(call)
        } else {
            notes.failing.remove(call)
        };
    }

    /// Pretends that an earlier agent enrolled a namespace.
    pub(super) fn inherit(&self, cookie: u64, addresses: &[&str]) {
        self.notes().enrolled.insert(cookie, earlier(cookie, addresses));
    }

    /// Pretends that an earlier agent with other maps enrolled a namespace.
    pub(super) fn precede(&self, cookie: u64, addresses: &[&str]) {
        self.notes().predecessors.insert(cookie, earlier(cookie, addresses));
    }

    fn called(&self, call: &'static str) -> Result<MutexGuard<'_, Notes>, Error> {
        let mut notes = self.notes();
        notes.calls.push(call.to_owned());
        if notes.failing.contains(call) {
            let source = io::Error::other("on purpose");
            return Err(Error::Kernel { action: "try", object: call.to_owned(), source });
        }
        Ok(notes)
    }
}

fn earlier(cookie: u64, addresses: &[&str]) -> Enrolled {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    Enrolled { cookie, slot: 1, addresses, guard_ifindexes: Vec::new() }
}

impl Hooks for Fake {
    fn enroll(&self, pod: &PodHooks<'_>) -> Result<Placed, Error> {
        let PodHooks { cookie, addresses, guard_ifindexes, exemptions, .. } = *pod;
        let mut notes = self.called("enroll")?;
        if let Some(then) = notes.once_captured.take() {
            then();
        }
        let enrolled = Enrolled {
            cookie,
            slot: 1,
            addresses: addresses.to_vec(),
            guard_ifindexes: guard_ifindexes.to_vec(),
        };
        notes.enrolled.insert(cookie, enrolled);
        notes.detached.clear();
        let exempt = if notes.failing.contains("exempt") {
            Err(Error::TooManyExempt { what: "ports", room: 64 })
        } else {
            notes.exempt.insert(cookie, exemptions.clone());
            Ok(())
        };
        Ok(Placed { slot: 1, exempt })
    }

    fn exempt(&self, cookie: u64, exemptions: &PodExemptions) -> Result<(), Error> {
        self.called("exempt")?.exempt.insert(cookie, exemptions.clone());
        Ok(())
    }

    fn set_direct(&self, destinations: &[SocketAddr]) -> Result<DirectFill, Error> {
        let mut notes = self.notes();
        notes.direct = destinations.to_vec();
        let (wanted, capacity) = (destinations.len(), notes.capacity);
        Ok(DirectFill { wanted, held: wanted.min(capacity), capacity })
    }

    fn withdraw(&self, cookie: u64) -> Result<(), Error> {
        let mut notes = self.called("withdraw")?;
        notes.enrolled.remove(&cookie).map(drop).ok_or(Error::NotEnrolled(cookie))
    }

    fn enrolled(&self) -> Result<Vec<Enrolled>, Error> {
        Ok(self.called("enrolled")?.enrolled.values().cloned().collect())
    }

    fn predecessors(&self) -> Result<Vec<Enrolled>, Error> {
        let notes = self.notes();
        let is_left = |(cookie, _): &(&u64, &Enrolled)| !notes.enrolled.contains_key(*cookie);
        Ok(notes.predecessors.iter().filter(is_left).map(|(_, pod)| pod.clone()).collect())
    }

    fn retire_predecessors(&self, spared: &HashSet<u64>) -> Result<Removed, Error> {
        let mut notes = self.notes();
        if notes.failing.contains("retire") {
            return Err(Error::NotEnrolled(0));
        }
        notes.predecessors.retain(|cookie, _| spared.contains(cookie));
        Ok(Removed::default())
    }

    fn set_peers(&self, peers: &HashSet<IpAddr>) -> Result<PeerFill, Error> {
        let mut notes = self.called("set_peers")?;
        notes.peers.clone_from(peers);
        let (wanted, capacity) = (peers.len(), notes.capacity);
        let held = wanted.min(capacity);
        Ok(PeerFill { wanted, held, capacity, capture_all: wanted > capacity })
    }

    fn counters(&self, cookie: u64) -> Result<PodCounters, Error> {
        let known = self.notes().enrolled.contains_key(&cookie);
        known.then(PodCounters::default).ok_or(Error::NotEnrolled(cookie))
    }

    fn audit(&self, cookie: u64, _netns: BorrowedFd<'_>) -> Result<CaptureState, Error> {
        let notes = self.notes();
        let enrolled = notes.enrolled.get(&cookie);
        let attached = !notes.detached.contains("guard");
        let guards = enrolled.map(|enrolled| enrolled.guard_ifindexes.clone()).unwrap_or_default();
        Ok(CaptureState {
            missing_hooks: notes.missing_hooks.clone(),
            enrolled: enrolled.is_some(),
            inbound: !notes.detached.contains("inbound"),
            guards: guards.into_iter().map(|ifindex| GuardState { ifindex, attached }).collect(),
            unprobed: Vec::new(),
        })
    }

    fn missing_hooks(&self) -> Result<Vec<&'static str>, Error> {
        Ok(self.notes().missing_hooks.clone())
    }

    fn reattach(&self) -> Result<(), Error> {
        self.called("reattach")?.missing_hooks.clear();
        Ok(())
    }

    fn mark_listener(&self, listener: BorrowedFd<'_>) -> Result<(), Error> {
        assert!(rustix::net::sockopt::socket_acceptconn(listener.as_fd()).unwrap());
        self.notes().marked += 1;
        Ok(())
    }
}

impl Workers for Fake {
    fn add(&self, pod: Arc<LocalPod>, listeners: Vec<WorkerListeners>) {
        let mut notes = self.called("add").unwrap();
        notes.served.insert(pod.uid.clone(), (pod, listeners));
    }

    fn remove(&self, pod: &Arc<LocalPod>) {
        self.called("remove").unwrap().served.remove(&pod.uid);
    }
}
