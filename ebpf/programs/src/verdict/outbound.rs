//! What happens to a connection that an enrolled pod opens.

use sluice_abi::{Exemptions, Family, IpKey, Pod, PortKey, PortUse};

use crate::verdict::mesh::Mesh;

/// What a connect hook does with a socket.
#[must_use = "a dropped verdict lets plaintext through"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// Point it at the agent's listener on this port (network order).
    Capture([u8; 2]),
    /// Refuse it.
    Deny,
    /// Leave it alone and count it: the mesh does not know the destination.
    Direct,
    /// Leave it alone: it does not leave the pod, or not the pod's link.
    Home,
    /// Leave it alone and count it: an opt-out keeps it out of the mesh.
    Bypass,
}

/// Judges a connection of `pod` to `destination` at `port` (network order), made on `cpu`.
#[inline(always)]
pub fn judge(
    destination: &IpKey,
    port: [u8; 2],
    pod: &Pod,
    cpu: u32,
    mesh: &impl Mesh,
) -> Outbound {
    let family = Family::of(destination);
    if destination.is_loopback()
        || destination.is_unspecified()
        || destination == pod.primary(family)
    {
        return Outbound::Home;
    }
    if !mesh.covers(destination) {
        return Outbound::Direct;
    }
    // The pod's other addresses; looked up only for what would be captured.
    if mesh.local(destination).is_some_and(|local| local.slot == pod.slot()) {
        return Outbound::Home;
    }
    if is_bypassed(destination, port, pod.slot(), pod.exemptions(), mesh) {
        return Outbound::Bypass;
    }
    match pod.out_port(family, cpu) {
        Some(port) => Outbound::Capture(port),
        None => Outbound::Deny,
    }
}

/// Whether an opt-out, of the pod in `slot` or of the node, exempts the pod's TCP to a destination
/// that the mesh covers.
#[inline(always)]
pub fn is_bypassed(
    destination: &IpKey,
    port: [u8; 2],
    slot: u32,
    exemptions: Exemptions,
    mesh: &impl Mesh,
) -> bool {
    (exemptions.has(Exemptions::OUTBOUND_PORTS)
        && mesh.is_exempt(&PortKey::new(slot, PortUse::Outbound, port)))
        || (exemptions.has(Exemptions::OUTBOUND_NETWORKS)
            && mesh.is_exempt_network(slot, destination))
        || mesh.is_direct(destination, port)
}

#[cfg(test)]
mod tests {
    use sluice_abi::PodAddresses;

    use super::*;
    use crate::verdict::mesh::fake::{FAKE, Fake, key};

    const HTTP: [u8; 2] = 80_u16.to_be_bytes();

    fn pod() -> Pod {
        Pod::new(1, PodAddresses { v4: key("10.1.0.2"), v6: key("fd00:1::2") })
            .with_worker(4001, 6001)
            .and_then(|pod| pod.with_worker(4002, 0))
            .expect("two workers fit")
    }

    fn verdict(destination: &str) -> Outbound {
        judge(&key(destination), HTTP, &pod(), 0, &FAKE)
    }

    #[test]
    fn loopback_unspecified_and_own_addresses_stay_home() {
        for home in ["127.0.0.1", "127.8.8.8", "::1", "0.0.0.0", "::", "10.1.0.2", "fd00:1::2"] {
            assert_eq!(verdict(home), Outbound::Home, "{home}");
        }
    }

    #[test]
    fn a_second_address_of_the_pod_stays_home_though_it_is_a_peer() {
        let peers = Fake { peers: &["10.1.0.22"], ..FAKE };
        assert_eq!(judge(&key("10.1.0.22"), HTTP, &pod(), 0, &peers), Outbound::Home);
    }

    #[test]
    fn a_pod_without_an_ipv6_address_does_not_take_unspecified_for_its_own() {
        let v4_only = Pod::new(1, PodAddresses { v4: key("10.1.0.2"), v6: IpKey::UNSPECIFIED });
        assert_eq!(judge(&key("fd00:1::3"), HTTP, &v4_only, 0, &FAKE), Outbound::Deny);
    }

    #[test]
    fn peers_are_captured_by_the_worker_of_the_cpu() {
        assert_eq!(verdict("10.96.0.10"), Outbound::Capture(4001_u16.to_be_bytes()));
        assert_eq!(verdict("fd00:1::3"), Outbound::Capture(6001_u16.to_be_bytes()));
        let second = judge(&key("10.1.0.3"), HTTP, &pod(), 3, &FAKE);
        assert_eq!(second, Outbound::Capture(4002_u16.to_be_bytes()));
    }

    #[test]
    fn a_family_that_the_worker_does_not_serve_is_denied() {
        assert_eq!(judge(&key("fd00:1::3"), HTTP, &pod(), 1, &FAKE), Outbound::Deny);
    }

    #[test]
    fn opt_outs_of_the_pod_and_the_node_leave_exactly_their_destinations_alone() {
        let all = Exemptions::NONE
            .with(Exemptions::OUTBOUND_PORTS, true)
            .with(Exemptions::OUTBOUND_NETWORKS, true);
        let mesh = Fake {
            ports: &[(PortUse::Outbound, 5432), (PortUse::Inbound, 81)],
            networks: &["10.1.0.3"],
            direct: &[("fd00:1::3", 6379)],
            ..FAKE
        };
        let verdict = |destination, port: u16, exemptions| {
            let pod = pod().with_exemptions(exemptions);
            judge(&key(destination), port.to_be_bytes(), &pod, 0, &mesh)
        };
        assert_eq!(verdict("10.96.0.10", 5432, all), Outbound::Bypass);
        assert_eq!(verdict("10.1.0.3", 80, all), Outbound::Bypass);
        assert_eq!(verdict("fd00:1::3", 6379, Exemptions::NONE), Outbound::Bypass);
        let captured = |verdict| matches!(verdict, Outbound::Capture(_));
        assert!(captured(verdict("10.96.0.10", 5433, all)), "another port");
        assert!(captured(verdict("10.96.0.10", 81, all)), "an inbound port");
        assert!(captured(verdict("10.96.0.10", 5432, Exemptions::OUTBOUND_NETWORKS)));
        assert!(captured(verdict("10.1.0.3", 80, Exemptions::OUTBOUND_PORTS)));
        assert!(captured(verdict("fd00:1::3", 80, Exemptions::NONE)));
        assert_eq!(verdict("1.1.1.1", 5432, all), Outbound::Direct, "never of the mesh");
        assert_eq!(verdict("127.0.0.1", 5432, all), Outbound::Home);
    }

    #[test]
    fn what_the_mesh_does_not_know_goes_direct_until_peers_overflow() {
        assert_eq!(verdict("1.1.1.1"), Outbound::Direct);
        let full = Fake { capture_all: true, ..FAKE };
        let overflow = judge(&key("1.1.1.1"), HTTP, &pod(), 0, &full);
        assert_eq!(overflow, Outbound::Capture(4001_u16.to_be_bytes()));
        assert_eq!(judge(&key("fe80::1"), HTTP, &pod(), 0, &full), Outbound::Direct);
    }
}
