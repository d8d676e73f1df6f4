//! Pods that an earlier agent enrolled: they stay captured until it is known that nobody wants
//! them.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use sluice_kernel::Enrolled;
use sluice_sys::{Netns, veth};

use super::PodManager;
use crate::{Departure, Hooks, PodEvent, enrol, located::Located, record::Record};

/// What is left of agents whose maps have another shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Predecessors {
    /// Whatever it is, nobody has said yet which pods are declared.
    Unjudged,
    /// Perhaps something.
    Left,
    /// Nothing.
    Gone,
}

impl Predecessors {
    /// Notes that the declared pods are known.
    pub(super) fn judge(&mut self) {
        if *self == Self::Unjudged {
            *self = Self::Left;
        }
    }
}

impl<H: Hooks> PodManager<H> {
    /// Withdraws the namespaces that an earlier agent enrolled and that cannot belong to a declared
    /// pod. The others stay captured, and are taken over without a gap when their pod is enrolled.
    pub(super) fn settle_inheritance(&mut self) {
        self.read_inheritance();
        if self.inherited.as_ref().is_none_or(BTreeMap::is_empty) {
            return;
        }
        self.identify_all();
        let unwanted =
            |enrolled: &&Enrolled| !self.pods.values().any(|record| may_be(record, enrolled));
        let inherited = self.inherited.iter().flat_map(BTreeMap::values);
        let unwanted: Vec<_> = inherited.filter(unwanted).map(|enrolled| enrolled.cookie).collect();
        for cookie in unwanted {
            if let Some(inherited) = &mut self.inherited {
                inherited.remove(&cookie);
            }
            self.release(cookie, None, Departure::Undeclared);
        }
    }

    /// Takes down what agents with maps of another shape left. A pod that may be a declared one stays with them until
    /// it is enrolled here, refused and not free; whatever fails is tried again at the next audit.
    pub(super) fn retire_predecessors(&mut self) {
        if self.predecessors != Predecessors::Left {
            return;
        }
        match self.retire() {
            Ok(true) => self.predecessors = Predecessors::Gone,
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "taking down what another version of the agent left");
            }
        }
    }

    /// Whether nothing of them is left.
    fn retire(&mut self) -> Result<bool, sluice_kernel::Error> {
        let predecessors = self.hooks.predecessors()?;
        if !predecessors.is_empty() {
            self.identify_all();
        }
        let is_spared =
            |enrolled: &&Enrolled| self.pods.values().any(|record| may_be(record, enrolled));
        let spared: HashSet<_> =
            predecessors.iter().filter(is_spared).map(|enrolled| enrolled.cookie).collect();
        self.hooks.retire_predecessors(&spared)?;
        Ok(spared.is_empty())
    }

    /// Learns which namespace each pod has that is not captured.
    fn identify_all(&mut self) {
        self.pods
            .values_mut()
            .filter(|record| record.captured.is_none())
            .for_each(|record| identify(record, &self.located));
    }

    /// Asks the hooks once what an earlier agent enrolled.
    pub(super) fn read_inheritance(&mut self) {
        if self.inherited.is_none() {
            match self.hooks.enrolled() {
                Ok(all) => self.inherit(all),
                Err(error) => {
                    self.events.push(PodEvent::AdoptionFailed { reason: error.to_string() });
                }
            }
        }
    }

    /// Returns the peers to set for a provisional snapshot: it adds to those that the kernel has been
    /// told, and takes none away. `None` leaves the kernel's peers as they are: what an earlier agent
    /// told the kernel is newer than what was remembered on disk.
    pub(super) fn provisional_peers(&self, remembered: HashSet<IpAddr>) -> Option<HashSet<IpAddr>> {
        if let Some(known) = &self.known_peers {
            return Some(known.union(&remembered).copied().collect());
        }
        let is_bare = self.inherited.as_ref().is_some_and(BTreeMap::is_empty)
            && self.captured_pods().next().is_none();
        is_bare.then_some(remembered)
    }

    /// Records what is inherited: all but what this manager has enrolled or given up meanwhile.
    fn inherit(&mut self, all: Vec<Enrolled>) {
        let own: Vec<_> = self.captured_pods().map(|pod| pod.cookie).collect();
        let foreign = |enrolled: &Enrolled| {
            !own.contains(&enrolled.cookie) && !self.unwanted.contains_key(&enrolled.cookie)
        };
        let foreign = all.into_iter().filter(foreign);
        self.inherited = Some(foreign.map(|enrolled| (enrolled.cookie, enrolled)).collect());
    }
}

/// Learns which namespace a pod has, without keeping it open. One that no veth pair ties to the node has never been
/// enrolled: a process of the pod may have made it, and it says nothing about where the pod is.
fn identify(record: &mut Record, located: &Located) {
    let is_tied = |netns: &Netns| veth::is_tied_here(netns).unwrap_or(false);
    let found = enrol::open(&record.declared, located, None).ok().filter(is_tied);
    record.cookie = found.map(|netns| netns.cookie());
}

/// Whether an enrolled namespace may belong to a declared pod. As long as the pod's namespace cannot
/// be opened, any enrolled one that had an address of the pod may be it, and so may one without known
/// addresses.
fn may_be(record: &Record, enrolled: &Enrolled) -> bool {
    let shared = |address: &IpAddr| record.declared.addresses.contains(address);
    match record.cookie {
        Some(cookie) => cookie == enrolled.cookie,
        None => enrolled.addresses.is_empty() || enrolled.addresses.iter().any(shared),
    }
}
