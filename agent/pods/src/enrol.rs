//! Enrolling one pod.

use std::{
    collections::HashSet,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    time::SystemTime,
};

use sluice_kernel::PodHooks;
use sluice_sys::{Netns, veth};

use crate::{
    Hooks, LocalPod, declared::Declared, exempt::Exempt, listeners::PodListeners, located::Located,
    record::Enrolment, refusal::Refusal,
};

/// The namespace that the declaration leads to now; `captured` is the one that a pod has which no process shows.
pub(crate) fn open(
    declared: &Declared,
    located: &Located,
    captured: Option<&Netns>,
) -> Result<Netns, Refusal> {
    match &declared.netns {
        Some(path) => Ok(Netns::open(path)?),
        None => located.of(declared)?.or_else(|| captured.cloned()).ok_or(Refusal::NoNamespace),
    }
}

/// A namespace that was found to be the declared pod's, and that can be guarded.
pub(crate) struct Checked {
    pub(crate) netns: Netns,
    guard_ifindexes: Vec<u32>,
    /// Cookies of sockets in it that nobody holds, if they are of interest.
    pub(crate) unowned: HashSet<u64>,
}

/// Checks that the namespace is the declared pod's and that every way out of it can be guarded.
pub(crate) fn check(declared: &Declared, netns: Netns) -> Result<Checked, Refusal> {
    check_addresses(declared, &sluice_sys::addresses(&netns)?)?;
    let guard_ifindexes = guard_ifindexes(&netns)?;
    if guard_ifindexes.is_empty() {
        return Err(Refusal::NoVeth);
    }
    Ok(Checked { netns, guard_ifindexes, unowned: HashSet::new() })
}

/// Enrols a pod, or moves an enrolled one to new listeners. As soon as the hooks have switched, its
/// connections wait in the listeners that are returned.
pub(crate) fn enrol(
    hooks: &impl Hooks,
    workers: usize,
    declared: &Declared,
    exempt: &Exempt,
    Checked { netns, guard_ifindexes, unowned }: Checked,
) -> Result<Enrolment, Refusal> {
    let needs_v6 = declared.addresses.iter().any(IpAddr::is_ipv6);
    let mark = |listener: BorrowedFd<'_>| hooks.mark_listener(listener);
    let listeners = PodListeners::open(&netns, workers, needs_v6, mark)?;
    let placed = hooks.enroll(&PodHooks {
        cookie: netns.cookie(),
        netns: netns.as_fd(),
        slot: None,
        addresses: &declared.addresses,
        guard_ifindexes: &guard_ifindexes,
        workers: &listeners.sockets()?,
        exemptions: exempt.hooks(),
    })?;
    let Declared { uid, name, account, identity, addresses, .. } = declared.clone();
    let cookie = netns.cookie();
    let enrolled_at = SystemTime::now();
    let pod = LocalPod {
        uid,
        name,
        account,
        identity,
        addresses,
        netns,
        cookie,
        guard_ifindexes,
        enrolled_at,
    };
    Ok(Enrolment { pod, listeners: listeners.into_workers(), unowned, exempt: placed.exempt })
}

/// Returns the node's interfaces where packets of the pod come out, in ascending order.
pub(crate) fn guard_ifindexes(netns: &Netns) -> sluice_sys::Result<Vec<u32>> {
    let mut found: Vec<_> =
        veth::host_peers(netns)?.into_iter().map(|link| link.host_ifindex).collect();
    found.sort_unstable();
    Ok(found)
}

/// Checks that the namespace has all declared addresses. A path that leads to another pod's
/// namespace would capture that pod under this one's identity.
fn check_addresses(declared: &Declared, found: &[IpAddr]) -> Result<(), Refusal> {
    if declared.addresses.is_empty() {
        return Err(Refusal::NoAddress);
    }
    match declared.addresses.iter().find(|address| !found.contains(address)) {
        Some(absent) => Err(Refusal::ForeignNamespace { declared: *absent, found: found.to_vec() }),
        None => Ok(()),
    }
}
