//! What happens to a connection that reaches an enrolled pod.

use sluice_abi::{Family, IpKey, UNATTRIBUTED, listener_index};

use super::mesh::Mesh;

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
    /// On which CPU.
    pub cpu: u32,
}

/// Judges a TCP connection request in a pod's namespace.
///
/// What comes from inside the pod is told by its addresses. The ingress interface, which the kernel
/// tells since Linux 5.17, would not do: of a connection to the pod's own address it is the interface
/// that has the address, not the loopback one that the packet took. Nor can these addresses come from
/// outside: IPv4 drops them as martian, IPv6 drops `::1`, and an answer to the pod's own address never
/// reaches who forged it.
#[inline(always)]
pub fn judge(request: &Request, mesh: &impl Mesh) -> Inbound {
    let Request { remote, local, cpu } = request;
    if local.is_loopback() || remote.is_loopback() || remote == local {
        return Inbound::Home;
    }
    let Some(pod) = mesh.local(local) else {
        return Inbound::Drop(UNATTRIBUTED);
    };
    if mesh.local(remote).is_some_and(|other| other.slot == pod.slot) {
        return Inbound::Home;
    }
    match listener_index(pod, *cpu, Family::of(local)) {
        Some(index) => Inbound::Assign { index, slot: pod.slot },
        None => Inbound::Drop(pod.slot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::mesh::fake::{FAKE, key};

    fn verdict(remote: &str, local: &str) -> Inbound {
        judge(&Request { remote: key(remote), local: key(local), cpu: 1 }, &FAKE)
    }

    #[test]
    fn what_comes_from_inside_the_pod_stays_home() {
        assert_eq!(verdict("127.0.0.1", "127.0.0.1"), Inbound::Home);
        assert_eq!(verdict("::1", "::1"), Inbound::Home);
        assert_eq!(verdict("10.1.0.2", "10.1.0.2"), Inbound::Home);
        assert_eq!(verdict("10.1.0.2", "127.0.0.1"), Inbound::Home, "a captured connection");
        assert_eq!(verdict("10.1.0.22", "10.1.0.2"), Inbound::Home, "another address of the pod");
        assert_eq!(verdict("fe80::2", "fe80::2"), Inbound::Home, "an address that nobody enrolled");
    }

    #[test]
    fn what_comes_from_outside_goes_to_the_worker_of_the_cpu() {
        assert_eq!(verdict("10.9.9.9", "10.1.0.2"), Inbound::Assign { index: 18, slot: 1 });
        assert_eq!(verdict("fd00:9::9", "fd00:1::3"), Inbound::Assign { index: 35, slot: 2 });
        assert_eq!(verdict("10.1.0.3", "10.1.0.2"), Inbound::Assign { index: 18, slot: 1 });
    }

    #[test]
    fn an_address_that_is_nobodys_is_refused() {
        assert_eq!(verdict("10.9.9.9", "10.1.0.77"), Inbound::Drop(UNATTRIBUTED));
        assert_eq!(verdict("fe80::9", "fe80::2"), Inbound::Drop(UNATTRIBUTED));
    }
}
