//! Which pods claim an address, and which of them owns it.
//!
//! Addresses are reused, and the watch reports that late: for a while two pods may claim one.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use super::{Known, Pods};
use crate::Standing;

#[derive(Debug, Default)]
pub(super) struct Claims {
    by_address: HashMap<IpAddr, Claimants>,
    by_pod: HashMap<Arc<str>, Vec<IpAddr>>,
    /// Addresses with more than one claimant.
    contested: BTreeSet<IpAddr>,
}

/// The pods that claim an address: almost always one.
type Claimants = Vec<Arc<str>>;

// === impl Claims ===

impl Claims {
    /// Notes which addresses a pod claims. Returns the other pods that this concerns.
    pub(super) fn set(&mut self, uid: &Arc<str>, addresses: &[IpAddr]) -> Vec<Arc<str>> {
        let old = match addresses {
            [] => self.by_pod.remove(uid),
            some => self.by_pod.insert(Arc::clone(uid), some.to_vec()),
        };
        let mut others = Vec::new();
        let old = old.unwrap_or_default();
        for address in &old {
            let claimants = self.by_address.entry(*address).or_default();
            others.extend(claimants.iter().filter(|claimant| *claimant != uid).cloned());
            if !addresses.contains(address) {
                claimants.retain(|claimant| claimant != uid);
            }
            if claimants.is_empty() {
                self.by_address.remove(address);
            }
        }
        for address in addresses.iter().filter(|address| !old.contains(address)) {
            let claimants =
                self.by_address.entry(*address).or_insert_with(|| Vec::with_capacity(1));
            others.extend(claimants.iter().cloned());
            claimants.push(Arc::clone(uid));
        }
        for address in old.iter().chain(addresses) {
            if self.of(*address).len() > 1 {
                self.contested.insert(*address);
            } else {
                self.contested.remove(address);
            }
        }
        others
    }

    pub(super) fn of(&self, address: IpAddr) -> &[Arc<str>] {
        self.by_address.get(&address).map(Vec::as_slice).unwrap_or_default()
    }
}

impl Pods {
    /// Returns the pod that owns an address. Of several claimants it is the only one that is not terminating, if that
    /// one is no older than the others and known to run; otherwise nobody owns the address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&Arc<str>> {
        let claimants = self.claims.of(address);
        if let [only] = claimants {
            return Some(only);
        }
        let mut staying = claimants
            .iter()
            .filter_map(|uid| self.facts(uid))
            .filter(|facts| !facts.stage.terminating);
        let heir = staying.next().filter(|_| staying.next().is_none())?;
        let is_oldest_news =
            |uid: &Arc<str>| self.facts(uid).is_some_and(|other| other.created <= heir.created);
        let runs = heir.stage.running || self.announced.contains_key(&heir.uid);
        (runs && claimants.iter().all(is_oldest_news)).then_some(&heir.uid)
    }

    /// Returns the addresses that a pod of the mesh claims but nobody owns.
    pub(super) fn disputes(&self, known: &Known<'_>) -> HashMap<IpAddr, Arc<str>> {
        let is_of_mesh = |uid: &Arc<str>| {
            let standing = self.facts(uid).and_then(|facts| known.standing(facts));
            standing == Some(Standing::Enrolled)
        };
        let is_disputed = |address: &&IpAddr| {
            self.owner(**address).is_none() && self.claims.of(**address).iter().any(is_of_mesh)
        };
        self.claims
            .contested
            .iter()
            .filter(is_disputed)
            .map(|address| {
                (*address, format!("{address} is claimed by {}", self.claimants(*address)).into())
            })
            .collect()
    }

    /// Names the pods that claim an address, for people.
    pub(super) fn claimants(&self, address: IpAddr) -> String {
        let facts = self.claims.of(address).iter().filter_map(|uid| self.facts(uid));
        let mut names: Vec<_> =
            facts.map(|facts| format!("{}/{}", facts.namespace, facts.name)).collect();
        names.sort();
        names.join(" and ")
    }
}
