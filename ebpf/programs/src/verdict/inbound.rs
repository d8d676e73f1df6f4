//! What happens to a connection that reaches an enrolled pod.

use sluice_abi::{Family, IpKey, Local, UNATTRIBUTED, listener_index};

use super::mesh::Mesh;

/// Index of the loopback interface, in every network namespace.
const LOOPBACK_IFINDEX: u32 = 1;

/// What the lookup of a listener for a new connection comes to.
#[must_use = "a dropped verdict lets plaintext in"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Give it to the listener at `index`; count for `slot`.
    Assign {
        /// In the map of listeners.
        index: u32,
        /// Of the pod.
        slot: u32,
    },
    /// Refuse it, and count for this slot.
    Drop(u32),
    /// Leave it to the pod's own sockets: it comes from inside the pod.
    Home,
}

/// A connection request, as the hook sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Who asks.
    pub remote: IpKey,
    /// Which address is asked.
    pub local: IpKey,
    /// Through which interface; `None` before Linux 5.17, which does not tell.
    pub ingress_ifindex: Option<u32>,
    /// On which CPU.
    pub cpu: u32,
}

/// Judges a TCP connection request in a pod's namespace.
#[inline(always)]
pub fn judge(request: &Request, mesh: &impl Mesh) -> Inbound {
    match request.ingress_ifindex {
        Some(LOOPBACK_IFINDEX) => return Inbound::Home,
        // A packet from 127/8 or ::1 cannot have come from outside: the kernel drops it as martian.
        None if request.remote.is_loopback() => return Inbound::Home,
        Some(_) | None => {}
    }
    let Some(local) = mesh.local(&request.local) else {
        return Inbound::Drop(UNATTRIBUTED);
    };
    if request.ingress_ifindex.is_none() && is_own(&request.remote, local, mesh) {
        return Inbound::Home;
    }
    match listener_index(local, request.cpu, Family::of(&request.local)) {
        Some(index) => Inbound::Assign { index, slot: local.slot },
        None => Inbound::Drop(local.slot),
    }
}

/// Whether the remote address is the pod's own, so that the packet came over loopback.
#[inline(always)]
fn is_own(remote: &IpKey, local: Local, mesh: &impl Mesh) -> bool {
    mesh.local(remote).is_some_and(|other| other.slot == local.slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::mesh::fake::{FAKE, key};

    fn request(remote: &str, local: &str, ingress_ifindex: Option<u32>) -> Request {
        Request { remote: key(remote), local: key(local), ingress_ifindex, cpu: 1 }
    }

    fn verdict(remote: &str, local: &str, ingress_ifindex: Option<u32>) -> Inbound {
        judge(&request(remote, local, ingress_ifindex), &FAKE)
    }

    #[test]
    fn what_comes_over_loopback_stays_home() {
        assert_eq!(verdict("10.1.0.2", "10.1.0.2", Some(1)), Inbound::Home);
        assert_eq!(verdict("127.0.0.1", "127.0.0.1", None), Inbound::Home);
        assert_eq!(verdict("::1", "::1", None), Inbound::Home);
        assert_eq!(verdict("10.1.0.22", "10.1.0.2", None), Inbound::Home);
    }

    #[test]
    fn a_forged_own_address_from_outside_is_steered_where_the_interface_is_known() {
        assert_eq!(
            verdict("10.1.0.2", "10.1.0.2", Some(2)),
            Inbound::Assign { index: 18, slot: 1 }
        );
    }

    #[test]
    fn what_comes_from_outside_goes_to_the_worker_of_the_cpu() {
        assert_eq!(
            verdict("10.9.9.9", "10.1.0.2", Some(2)),
            Inbound::Assign { index: 18, slot: 1 }
        );
        assert_eq!(verdict("fd00:9::9", "fd00:1::3", None), Inbound::Assign { index: 35, slot: 2 });
        assert_eq!(verdict("10.1.0.3", "10.1.0.2", None), Inbound::Assign { index: 18, slot: 1 });
    }

    #[test]
    fn an_address_that_is_nobodys_is_refused() {
        assert_eq!(verdict("10.9.9.9", "10.1.0.77", Some(2)), Inbound::Drop(UNATTRIBUTED));
        assert_eq!(verdict("fe80::9", "fe80::2", Some(2)), Inbound::Drop(UNATTRIBUTED));
    }
}
