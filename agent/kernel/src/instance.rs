//! The pinned state of one generation, and taking it down: by its owner, its successor or an uninstall.

use std::net::IpAddr;

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
    /// The pods that are enrolled.
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

    /// Takes a pod's hooks down, in the reverse of the order in which they went up. `keep` names
    /// interfaces whose filter another generation has taken over. How many links there were.
    pub(crate) fn withdraw(&self, cookie: u64, keep: &[u32]) -> Result<usize, Error> {
        let pod = self.tables.pods.get(&cookie)?;
        self.tables.pods.remove(&cookie)?;
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
        Ok(links)
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

    /// Takes the whole generation down, pods first, so that no pod is left half captured.
    pub(crate) fn remove(self, keep: &[u32]) -> Result<Removed, Error> {
        let mut removed = Removed::default();
        let mut cookies = self.pins.pods()?;
        cookies.extend(self.tables.pods.keys()?);
        cookies.sort_unstable();
        cookies.dedup();
        for cookie in cookies {
            removed.links += self.withdraw(cookie, keep)?;
            removed.pods += 1;
        }
        for name in PROGRAMS.into_iter().rev() {
            removed.links += usize::from(pins::remove_link(&self.pins.hook(name))?);
        }
        removed.maps = self.pins.remove()?;
        Ok(removed)
    }

    /// Removes a slot's guarded interfaces; those that answer `filtered` have a filter to detach.
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
