//! Pods that the agent before this one enrolled: kept captured until it is known that nobody wants
//! them.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use sluice_kernel::Enrolled;

use super::PodManager;
use crate::{Departure, Hooks, PodEvent, enrol, located::Located, record::Record};

impl<H: Hooks> PodManager<H> {
    /// Withdraws what an earlier agent enrolled and no declared pod can be. What may be a declared pod
    /// stays, and is taken over without a gap when that pod is enrolled.
    pub(super) fn settle_inheritance(&mut self) {
        self.read_inheritance();
        let Some(inherited) = self.inherited.as_ref().filter(|all| !all.is_empty()) else { return };
        self.pods
            .values_mut()
            .filter(|record| record.captured.is_none())
            .for_each(|record| identify(record, &self.located));
        let unwanted =
            |enrolled: &&Enrolled| !self.pods.values().any(|record| may_be(record, enrolled));
        let unwanted: Vec<_> =
            inherited.values().filter(unwanted).map(|enrolled| enrolled.cookie).collect();
        for cookie in unwanted {
            if let Some(inherited) = &mut self.inherited {
                inherited.remove(&cookie);
            }
            self.release(cookie, None, Departure::Undeclared);
        }
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

    /// The peers that a provisional snapshot adds to those that the kernel has, which it takes nothing
    /// from. What an earlier agent told the kernel is newer than what was remembered on disk.
    pub(super) fn provisional_peers(&self, remembered: HashSet<IpAddr>) -> Option<HashSet<IpAddr>> {
        if let Some(known) = &self.known_peers {
            return Some(known.union(&remembered).copied().collect());
        }
        let is_bare = self.inherited.as_ref().is_some_and(BTreeMap::is_empty)
            && self.captured_pods().next().is_none();
        is_bare.then_some(remembered)
    }

    /// What this manager has enrolled or given up meanwhile is not inherited.
    fn inherit(&mut self, all: Vec<Enrolled>) {
        let own: Vec<_> = self.captured_pods().map(|pod| pod.cookie).collect();
        let foreign = |enrolled: &Enrolled| {
            !own.contains(&enrolled.cookie) && !self.unwanted.contains_key(&enrolled.cookie)
        };
        let foreign = all.into_iter().filter(foreign);
        self.inherited = Some(foreign.map(|enrolled| (enrolled.cookie, enrolled)).collect());
    }
}

/// Learns which namespace a pod has, without keeping it open.
fn identify(record: &mut Record, located: &Located) {
    record.cookie = enrol::open(&record.declared, located).ok().map(|netns| netns.cookie());
}

/// Whether a namespace that was enrolled may be that of a declared pod. As long as the pod's namespace
/// cannot be opened, one that had an address of the pod may be; so may one of which no address is
/// known.
fn may_be(record: &Record, enrolled: &Enrolled) -> bool {
    let shared = |address: &IpAddr| record.declared.addresses.contains(address);
    match record.cookie {
        Some(cookie) => cookie == enrolled.cookie,
        None => enrolled.addresses.is_empty() || enrolled.addresses.iter().any(shared),
    }
}
