//! The pinned state of one generation, and its removal by its owner, its successor or an uninstall.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use sluice_abi::MAX_WORKERS;

use crate::{
    Enrolled, Error, Removed, guard,
    load::PROGRAMS,
    pins::{self, Pins},
    table::Tables,
};

/// Pins and maps of one generation.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) pins: Pins,
    pub(crate) tables: Tables,
}

impl Instance {
    /// Returns the enrolled pods.
    pub(crate) fn enrolled(&self) -> Result<Vec<Enrolled>, Error> {
        let mut enrolled = Vec::new();
        for cookie in self.tables.pods.keys()? {
            let Some(pod) = self.tables.pods.get(&cookie)? else { continue };
            let slot = pod.slot();
            let addresses = self.tables.local.keys_where(|local| local.slot == slot)?;
            let guard_ifindexes = self.tables.guarded.keys_where(|guarded| guarded.slot == slot)?;
            let addresses: Vec<IpAddr> = addresses.iter().map(sluice_abi::IpKey::ip).collect();
            enrolled.push(Enrolled { cookie, slot, addresses, guard_ifindexes });
        }
        Ok(enrolled)
    }

    /// Every pod of which there is anything: an entry, or hooks.
    pub(crate) fn cookies(&self) -> Result<BTreeSet<u64>, Error> {
        let mut cookies: BTreeSet<u64> = self.pins.pods()?.into_iter().collect();
        cookies.extend(self.tables.pods.keys()?);
        Ok(cookies)
    }

    /// Takes a pod's hooks down. `keep` names interfaces whose filter another generation has taken over. How many
    /// links there were.
    ///
    /// The entry that captures the pod goes last: until then its connections are refused at worst, its slot is
    /// nobody else's, and what fails half way can be done again.
    pub(crate) fn withdraw(&self, cookie: u64, keep: &[u32]) -> Result<usize, Error> {
        let pod = self.tables.pods.get(&cookie)?;
        let mut links = usize::from(pins::remove_link(&self.pins.inbound(cookie))?);
        let linked = self.pins.guards(cookie)?;
        for ifindex in &linked {
            links += usize::from(pins::remove_link(&self.pins.probe(cookie, *ifindex))?);
            links += usize::from(pins::remove_link(&self.pins.guard(cookie, *ifindex))?);
        }
        if let Some(pod) = pod {
            self.forget_guards(pod.slot(), |ifindex| {
                !linked.contains(&ifindex) && !keep.contains(&ifindex)
            })?;
            self.forget_slot(pod.slot())?;
        }
        self.pins.remove_pod(cookie)?;
        self.tables.pods.remove(&cookie)?;
        Ok(links)
    }

    /// Slots that are not free: some pod's, or still named by what is left of one.
    pub(crate) fn slots(&self) -> Result<HashSet<u32>, Error> {
        let mut slots = HashSet::new();
        for cookie in self.tables.pods.keys()? {
            slots.extend(self.tables.pods.get(&cookie)?.map(|pod| pod.slot()));
        }
        for ifindex in self.tables.guarded.keys()? {
            slots.extend(self.tables.guarded.get(&ifindex)?.map(|guarded| guarded.slot));
        }
        for address in self.tables.local.keys()? {
            slots.extend(self.tables.local.get(&address)?.map(|local| local.slot));
        }
        Ok(slots)
    }

    /// Removes what an enrolment that was cut short left: hooks of a pod that is not captured, and
    /// entries of a slot that is nobody's.
    pub(crate) fn sweep(&self) -> Result<(), Error> {
        let enrolled = self.tables.pods.keys()?;
        for cookie in self.pins.pods()? {
            if !enrolled.contains(&cookie) {
                tracing::warn!(cookie, "removing the remains of an enrolment that was cut short");
                self.withdraw(cookie, &[])?;
            }
        }
        let mut slots = Vec::new();
        for cookie in enrolled {
            slots.extend(self.tables.pods.get(&cookie)?.map(|pod| pod.slot()));
        }
        for ifindex in self.tables.guarded.keys_where(|guarded| !slots.contains(&guarded.slot))? {
            guard::detach_all_clsact(ifindex)?;
            self.tables.guarded.remove(&ifindex)?;
        }
        for address in self.tables.local.keys_where(|local| !slots.contains(&local.slot))? {
            self.tables.local.remove(&address)?;
        }
        Ok(())
    }

    /// Takes the generation down, pods first, so that no pod is left half captured. The pods in `spared` stay
    /// captured, and the hooks of the node with them.
    pub(crate) fn remove(self, keep: &[u32], spared: &HashSet<u64>) -> Result<Removed, Error> {
        let mut removed = Removed::default();
        let (spared, cookies): (Vec<_>, Vec<_>) =
            self.cookies()?.into_iter().partition(|cookie| spared.contains(cookie));
        for cookie in cookies {
            removed.links += self.withdraw(cookie, keep)?;
            removed.pods += 1;
        }
        if !spared.is_empty() {
            return Ok(removed);
        }
        // Left where the maps' values could not be read.
        for ifindex in self.tables.guarded.keys()? {
            if !keep.contains(&ifindex) {
                guard::detach_all_clsact(ifindex)?;
            }
        }
        for name in PROGRAMS.into_iter().rev() {
            removed.links += usize::from(pins::remove_link(&self.pins.hook(name))?);
        }
        removed.maps = self.pins.remove()?;
        Ok(removed)
    }

    /// Removes a slot's guarded interfaces from the map, and detaches the filters of those for
    /// which `filtered` is true.
    pub(crate) fn forget_guards(
        &self,
        slot: u32,
        filtered: impl Fn(u32) -> bool,
    ) -> Result<(), Error> {
        for ifindex in self.tables.guarded.keys_where(|guarded| guarded.slot == slot)? {
            if filtered(ifindex) {
                guard::detach_all_clsact(ifindex)?;
            }
            self.tables.guarded.remove(&ifindex)?;
        }
        Ok(())
    }

    fn forget_slot(&self, slot: u32) -> Result<(), Error> {
        for address in self.tables.local.keys_where(|local| local.slot == slot)? {
            self.tables.local.remove(&address)?;
        }
        let first = slot.saturating_mul(MAX_WORKERS * 2);
        for index in first..first.saturating_add(MAX_WORKERS * 2) {
            self.tables.listeners.remove(&index)?;
        }
        Ok(())
    }
}
