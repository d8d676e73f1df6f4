//! Enrolling a pod, and moving an enrolled one to other sockets.
//!
//! Fresh: listeners, addresses, guard, inbound hook, and last of all the entry that captures. Again,
//! after the agent restarted: the guard and the inbound hook first, so that what fails there leaves the
//! old listeners in force. Each step is an atomic replacement of one entry or program: a connection
//! meets either the old listener or the new one, and never none of the hooks.

use std::{
    collections::HashSet,
    net::IpAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use rustix::fs::fstat;
use sluice_abi::{
    Exemptions, Family, Guarded, IpKey, Local, MAX_WORKERS, Pod, PodAddresses, listener_index,
    program,
};

use crate::{
    Error, Placed, PodExemptions, PodHooks, WorkerSockets,
    exempt::Exempt,
    hooks,
    instance::Instance,
    load::Loaded,
    pins::{self, Pins},
    syscall::{self, program::AttachType},
};
use crate::{
    features::Features,
    guard::{self, Filter},
};

/// What enrolling needs besides the pod.
pub(crate) struct Enrolment<'a> {
    pub(crate) instance: &'a Instance,
    pub(crate) loaded: &'a mut Loaded,
    pub(crate) exempt: &'a mut Exempt,
    pub(crate) features: Features,
    pub(crate) max_pods: u32,
}

impl Enrolment<'_> {
    /// Enrols the pod, or moves an enrolled one. Undoes a fresh enrolment that fails.
    pub(crate) fn enroll(&mut self, pod: &PodHooks<'_>) -> Result<Placed, Error> {
        check(pod)?;
        let existing = self.instance.tables.pods.get(&pod.cookie)?;
        let slot = self.slot(pod, existing.map(|pod| pod.slot()))?;
        if existing.is_none() {
            self.instance.tables.clear_counters(slot)?;
        }
        let exemptions = existing.map_or(Exemptions::NONE, |pod| pod.exemptions());
        let enrolled = self.put_up(pod, Guarded { slot, exemptions });
        if enrolled.is_err() && existing.is_none() {
            self.take_back(pod.cookie, slot);
        }
        enrolled.map(|exempt| Placed { slot, exempt })
    }

    /// Changes an enrolled pod's exemptions. Those that are no longer wanted are removed first: if
    /// a step fails, the pod has fewer exemptions than it should, not more.
    pub(crate) fn exempt(&mut self, cookie: u64, wanted: &PodExemptions) -> Result<(), Error> {
        let pod = self.instance.tables.pods.get(&cookie)?.ok_or(Error::NotEnrolled(cookie))?;
        let present = Guarded { slot: pod.slot(), exemptions: pod.exemptions() };
        let (exemptions, outcome) = self.change_exemptions(cookie, present, wanted);
        if exemptions != pod.exemptions() {
            self.instance.tables.pods.insert(&cookie, &pod.with_exemptions(exemptions))?;
        }
        outcome
    }

    /// Changes the exemptions in all records but the entry that captures, which the caller writes.
    /// Returns the kinds that are in force now, and whether these are all that were wanted.
    fn change_exemptions(
        &mut self,
        cookie: u64,
        Guarded { slot, exemptions }: Guarded,
        wanted: &PodExemptions,
    ) -> (Exemptions, Result<(), Error>) {
        if let Err(error) = Exempt::check(wanted) {
            return (exemptions, Err(error));
        }
        let kinds = wanted.kinds();
        let remaining = exemptions.and(kinds);
        let mut narrow = || {
            self.note_exemptions(slot, remaining)?;
            self.exempt.narrow(&self.instance.tables, slot, wanted)
        };
        if let Err(error) = narrow() {
            return (remaining, Err(error));
        }
        let mut widen = || {
            self.exempt.widen(&self.instance.tables, slot, wanted)?;
            self.set_probe_filters(cookie, slot, kinds.has(Exemptions::PROBES))?;
            self.note_exemptions(slot, kinds)
        };
        match widen() {
            Ok(()) => (kinds, Ok(())),
            Err(error) => (remaining, Err(error)),
        }
    }

    /// Writes a pod's exemptions into the records that the inbound hook and the guard look up.
    fn note_exemptions(&self, slot: u32, exemptions: Exemptions) -> Result<(), Error> {
        let tables = &self.instance.tables;
        for ifindex in tables.guarded.keys_where(|guarded| guarded.slot == slot)? {
            tables.guarded.insert(&ifindex, &Guarded { slot, exemptions })?;
        }
        for address in tables.local.keys_where(|local| local.slot == slot)? {
            if let Some(local) = tables.local.get(&address)? {
                tables.local.insert(&address, &Local { exemptions, ..local })?;
            }
        }
        Ok(())
    }

    /// Attaches the probe filter to every interface of a pod, or removes it from all.
    fn set_probe_filters(&mut self, cookie: u64, slot: u32, wanted: bool) -> Result<(), Error> {
        let interfaces = self.instance.tables.guarded.keys_where(|guarded| guarded.slot == slot)?;
        for ifindex in interfaces {
            if wanted {
                self.attach(Filter::Probe, cookie, ifindex)?;
            } else if !pins::remove_link(&self.instance.pins.probe(cookie, ifindex))?
                && !self.features.tcx
            {
                guard::detach_clsact(Filter::Probe, ifindex)?;
            }
        }
        Ok(())
    }

    fn slot(&self, pod: &PodHooks<'_>, existing: Option<u32>) -> Result<u32, Error> {
        if let Some(existing) = existing {
            return match pod.slot {
                Some(slot) if slot != existing => {
                    Err(Error::Slot { slot, reason: "the pod has another one" })
                }
                Some(_) | None => Ok(existing),
            };
        }
        let taken = self.instance.slots()?;
        match pod.slot {
            Some(slot) if taken.contains(&slot) => {
                Err(Error::Slot { slot, reason: "another pod has it" })
            }
            Some(slot) if slot == 0 || slot > self.max_pods => {
                Err(Error::Slot { slot, reason: "it does not exist" })
            }
            Some(slot) => Ok(slot),
            None => (1..=self.max_pods)
                .find(|slot| !taken.contains(slot))
                .ok_or(Error::NoSlot { max_pods: self.max_pods }),
        }
    }

    /// `present` is the pod's slot, and what it was exempt from before; whether its exemptions are
    /// all in force now.
    ///
    /// An enrolled pod is served by the sockets that it has until nothing is left to be done that a program, a link
    /// or a full map could refuse.
    fn put_up(&mut self, pod: &PodHooks<'_>, present: Guarded) -> Result<Result<(), Error>, Error> {
        let slot = present.slot;
        let instance = self.instance;
        let tables = &instance.tables;
        let workers =
            u32::try_from(pod.workers.len()).map_err(|_many| Error::Workers(pod.workers.len()))?;
        let is_fresh = tables.pods.get(&pod.cookie)?.is_none();
        let entry = entry(pod, slot)?;
        instance.pins.create_pod(pod.cookie)?;
        if is_fresh {
            // Nothing asks for them yet, and the guard lets nobody send from an address that is not there.
            self.lead_to(pod, Local { slot, workers, exemptions: present.exemptions })?;
        }
        for ifindex in pod.guard_ifindexes {
            tables.guarded.insert(ifindex, &present)?;
            self.attach(Filter::Guard, pod.cookie, *ifindex)?;
        }
        let (exemptions, exempt) = self.change_exemptions(pod.cookie, present, pod.exemptions);
        self.attach_inbound(pod)?;
        let local = Local { slot, workers, exemptions };
        if !is_fresh {
            self.lead_to(pod, local)?;
        }
        tables.pods.insert(&pod.cookie, &entry.with_exemptions(exemptions))?;
        self.drop_stale(pod, local)?;
        Ok(exempt)
    }

    /// Has what comes to the pod's addresses go to its listeners.
    fn lead_to(&self, pod: &PodHooks<'_>, local: Local) -> Result<(), Error> {
        for (worker, sockets) in (0..).zip(pod.workers) {
            self.set_listener(local, worker, Family::V4, sockets.in_v4)?;
            self.set_listener(local, worker, Family::V6, sockets.in_v6)?;
        }
        for address in pod.addresses {
            self.instance.tables.local.insert(&(*address).into(), &local)?;
        }
        Ok(())
    }

    fn set_listener(
        &self,
        local: Local,
        worker: u32,
        family: Family,
        listener: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let Some(index) = listener_index(local, worker, family) else { return Ok(()) };
        match listener {
            Some(listener) => {
                let descriptor = listener.as_raw_fd().cast_unsigned();
                self.instance.tables.listeners.insert(&index, &descriptor)
            }
            None => self.instance.tables.listeners.remove(&index).map(drop),
        }
    }

    fn attach(&mut self, filter: Filter, cookie: u64, ifindex: u32) -> Result<(), Error> {
        if self.features.tcx {
            let pin = filter.pin(&self.instance.pins, cookie, ifindex);
            guard::attach_tcx(filter, self.loaded.program(filter.program())?, ifindex, &pin)
        } else {
            guard::attach_clsact(filter, &mut self.loaded.ebpf, ifindex)
        }
    }

    fn attach_inbound(&self, pod: &PodHooks<'_>) -> Result<(), Error> {
        let program = self.loaded.program(program::INBOUND)?;
        let pin = self.instance.pins.inbound(pod.cookie);
        if !is_on_namespace(&self.instance.pins, pod)? {
            // No other namespace can have the same cookie, so this link is a shell without a
            // namespace.
            pins::remove_link(&pin)?;
        }
        if hooks::update(&pin, program)? {
            return Ok(());
        }
        let link = syscall::link::to_fd(program.fd.as_fd(), pod.netns, AttachType::SK_LOOKUP)
            .map_err(Error::kernel("attach", program.name))?;
        syscall::pin(link.as_fd(), &pin).map_err(Error::path("pin a link at", pin))
    }

    /// Removes what the pod had before and no longer has.
    fn drop_stale(&self, pod: &PodHooks<'_>, local: Local) -> Result<(), Error> {
        let tables = &self.instance.tables;
        let addresses: HashSet<IpKey> =
            pod.addresses.iter().map(|address| (*address).into()).collect();
        for address in tables.local.keys_where(|entry| entry.slot == local.slot)? {
            if !addresses.contains(&address) {
                tables.local.remove(&address)?;
            }
        }
        for ifindex in tables.guarded.keys_where(|guarded| guarded.slot == local.slot)? {
            if !pod.guard_ifindexes.contains(&ifindex) {
                pins::remove_link(&self.instance.pins.probe(pod.cookie, ifindex))?;
                if !pins::remove_link(&self.instance.pins.guard(pod.cookie, ifindex))? {
                    guard::detach_all_clsact(ifindex)?;
                }
                tables.guarded.remove(&ifindex)?;
            }
        }
        let all = Local { workers: MAX_WORKERS, ..local };
        for worker in local.workers..MAX_WORKERS {
            self.set_listener(all, worker, Family::V4, None)?;
            self.set_listener(all, worker, Family::V6, None)?;
        }
        Ok(())
    }

    /// Undoes a fresh enrolment that failed halfway.
    fn take_back(&mut self, cookie: u64, slot: u32) {
        let mut undo = || {
            self.instance.withdraw(cookie, &[])?;
            self.exempt.forget(&self.instance.tables, slot)?;
            self.instance.forget_guards(slot, |_| !self.features.tcx)?;
            self.instance.sweep()
        };
        if let Err(error) = undo() {
            tracing::error!(cookie, %error, "a failed enrolment could not be undone; the next start will");
        }
    }
}

/// Whether there is a pinned inbound link and it is on the pod's namespace.
pub(crate) fn is_on_namespace(pins: &Pins, pod: &PodHooks<'_>) -> Result<bool, Error> {
    Ok(inbound_link(pins, pod.cookie, pod.netns)?.is_some())
}

/// Returns the id of the program under the pod's pinned inbound link, if that link is on the
/// namespace.
pub(crate) fn inbound_link(
    pins: &Pins,
    cookie: u64,
    netns: BorrowedFd<'_>,
) -> Result<Option<u32>, Error> {
    let pin = pins.inbound(cookie);
    let Some(link) = syscall::open_pin(&pin).map_err(Error::path("open the pin", &pin))? else {
        return Ok(None);
    };
    let info =
        syscall::link::info(link.as_fd()).map_err(Error::path("inspect the link at", pin))?;
    let inode = fstat(netns)
        .map_err(|error| Error::kernel("inspect", "a network namespace")(error.into()))?
        .st_ino;
    Ok((info.namespace() == inode).then_some(info.program))
}

fn check(pod: &PodHooks<'_>) -> Result<(), Error> {
    if pod.workers.is_empty()
        || pod.workers.len() > usize::try_from(MAX_WORKERS).unwrap_or_default()
    {
        return Err(Error::Workers(pod.workers.len()));
    }
    let unusable = |address: &&IpAddr| address.is_loopback() || address.is_unspecified();
    match pod.addresses.iter().find(unusable) {
        Some(address) => Err(Error::Address(*address)),
        None => Ok(()),
    }
}

/// The entry that captures the pod's connections.
fn entry(pod: &PodHooks<'_>, slot: u32) -> Result<Pod, Error> {
    let primary = |wanted: Family| {
        let mut keys = pod.addresses.iter().map(|address| IpKey::from(*address));
        keys.find(|key| Family::of(key) == wanted).unwrap_or(IpKey::UNSPECIFIED)
    };
    let addresses = PodAddresses { v4: primary(Family::V4), v6: primary(Family::V6) };
    let mut entry = Pod::new(slot, addresses);
    for WorkerSockets { out_port_v4, out_port_v6, .. } in pod.workers {
        entry = entry
            .with_worker(out_port_v4.unwrap_or_default(), out_port_v6.unwrap_or_default())
            .ok_or(Error::Workers(pod.workers.len()))?;
    }
    Ok(entry)
}
