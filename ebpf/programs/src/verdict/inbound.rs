//! What happens to a connection that reaches an enrolled pod.

use sluice_abi::{
    Exemptions, Family, IpKey, PortKey, PortUse, ProbeKey, UNATTRIBUTED, listener_index,
};

use super::mesh::Mesh;

/// The verdict on a new connection for which the kernel looks up a listener.
#[must_use = "a dropped verdict lets plaintext in"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inbound {
    /// Give it to the listener at `index`; count for `slot`.
    Assign {
        /// Index in the map of listeners.
        index: u32,
        /// The pod's slot.
        slot: u32,
    },
    /// Refuse it, and count for this slot.
    Drop(u32),
    /// Leave it to the pod's own sockets: it comes from inside the pod.
    Home,
    /// Leave it to the pod's own sockets because of an opt-out, and count it for this slot.
    Bypass(u32),
    /// Leave it to the pod's own sockets because it is the kubelet's probe, and count it for this
    /// slot.
    Probe(u32),
}

/// A connection request, as the hook sees it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// The client's address.
    pub remote: IpKey,
    /// The client's port, in network order.
    pub remote_port: [u8; 2],
    /// The requested address.
    pub local: IpKey,
    /// The requested port, in network order.
    pub local_port: [u8; 2],
    /// The CPU that runs the hook.
    pub cpu: u32,
}

/// Judges a TCP connection request in a pod's namespace.
///
/// A connection from inside the pod is recognised by its addresses. The ingress interface, which the
/// kernel provides since Linux 5.17, would not do: for a connection to the pod's own address it is the
/// interface that owns the address, not the loopback one that the packet took. These addresses cannot
/// come from outside either: IPv4 drops them as martians, IPv6 drops `::1`, and an answer to the pod's
/// own address never reaches whoever forged it.
#[inline(always)]
pub fn judge(request: &Request, mesh: &impl Mesh) -> Inbound {
    let Request { remote, remote_port, local, local_port, cpu } = request;
    if local.is_loopback() || remote.is_loopback() || remote == local {
        return Inbound::Home;
    }
    let Some(pod) = mesh.local(local) else {
        return Inbound::Drop(UNATTRIBUTED);
    };
    if mesh.local(remote).is_some_and(|other| other.slot == pod.slot) {
        return Inbound::Home;
    }
    if pod.exemptions.has(Exemptions::INBOUND_PORTS)
        && mesh.is_exempt(&PortKey::new(pod.slot, PortUse::Inbound, *local_port))
    {
        return Inbound::Bypass(pod.slot);
    }
    if pod.exemptions.has(Exemptions::PROBES)
        && mesh.is_probe(&ProbeKey::new((*remote, *remote_port), (*local, *local_port)), pod.slot)
    {
        return Inbound::Probe(pod.slot);
    }
    match listener_index(pod, *cpu, Family::of(local)) {
        Some(index) => Inbound::Assign { index, slot: pod.slot },
        None => Inbound::Drop(pod.slot),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::mesh::fake::{FAKE, Fake, key};

    fn request(remote: (&str, u16), local: (&str, u16)) -> Request {
        Request {
            remote: key(remote.0),
            remote_port: remote.1.to_be_bytes(),
            local: key(local.0),
            local_port: local.1.to_be_bytes(),
            cpu: 1,
        }
    }

    fn verdict(remote: &str, local: &str) -> Inbound {
        judge(&request((remote, 40_000), (local, 8080)), &FAKE)
    }

    #[test]
    fn an_exempt_port_of_this_pod_is_the_applications_own() {
        let exemptions = Exemptions::INBOUND_PORTS;
        let mesh = Fake { exemptions, ports: &[(PortUse::Inbound, 8080)], ..FAKE };
        let to = |local| judge(&request(("10.9.9.9", 40_000), local), &mesh);
        assert_eq!(to(("10.1.0.2", 8080)), Inbound::Bypass(1));
        assert_eq!(to(("fd00:1::2", 8080)), Inbound::Bypass(1));
        assert!(matches!(to(("10.1.0.2", 8081)), Inbound::Assign { .. }), "another port");
        assert!(matches!(to(("10.1.0.3", 8080)), Inbound::Assign { .. }), "another pod");
        let off = Fake { exemptions: Exemptions::PROBES, ..mesh };
        let verdict = judge(&request(("10.9.9.9", 40_000), ("10.1.0.2", 8080)), &off);
        assert!(matches!(verdict, Inbound::Assign { .. }), "taken back");
    }

    #[test]
    fn only_the_kubelets_own_connection_is_a_probe() {
        let mesh = Fake {
            exemptions: Exemptions::PROBES,
            probes: &[("10.9.9.9", 40_000, "10.1.0.2", 8080)],
            ..FAKE
        };
        let from = |remote, local| judge(&request(remote, local), &mesh);
        assert_eq!(from(("10.9.9.9", 40_000), ("10.1.0.2", 8080)), Inbound::Probe(1));
        for (remote, local) in [
            (("10.9.9.9", 40_001), ("10.1.0.2", 8080)),
            (("10.9.9.8", 40_000), ("10.1.0.2", 8080)),
            (("10.9.9.9", 40_000), ("10.1.0.2", 8081)),
            (("10.9.9.9", 40_000), ("10.1.0.22", 8080)),
        ] {
            assert!(matches!(from(remote, local), Inbound::Assign { .. }), "{remote:?} {local:?}");
        }
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
