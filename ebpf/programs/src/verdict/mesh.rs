//! What the verdicts ask the maps.

use sluice_abi::{IpKey, Local, PortKey, ProbeKey};

/// The part of the maps that verdicts need.
pub trait Mesh {
    /// Whether this is the address of a mesh pod or service.
    fn is_peer(&self, address: &IpKey) -> bool;

    /// Whether every destination counts as a peer, because not all peers fit into their map.
    fn capture_all(&self) -> bool;

    /// The enrolled pod of this node that has the address.
    fn local(&self, address: &IpKey) -> Option<Local>;

    /// Whether a pod's port is exempt for this use.
    fn is_exempt(&self, port: &PortKey) -> bool;

    /// Whether the pod in `slot` reaches this address without the mesh.
    fn is_exempt_network(&self, slot: u32, address: &IpKey) -> bool;

    /// Whether every pod reaches this address and port, in network order, without the mesh.
    fn is_direct(&self, address: &IpKey, port: [u8; 2]) -> bool;

    /// Whether a connection to the pod in `slot` is the kubelet's.
    fn is_probe(&self, connection: &ProbeKey, slot: u32) -> bool;

    /// Whether plaintext TCP from an enrolled pod must not reach this destination.
    #[inline(always)]
    fn covers(&self, destination: &IpKey) -> bool {
        self.is_peer(destination) || (self.capture_all() && is_routed(destination))
    }
}

/// Whether a destination can be further away than the pod's own link.
#[inline(always)]
fn is_routed(destination: &IpKey) -> bool {
    let [w0, _, _, w3] = destination.words();
    let [first, ..] = if destination.is_v4() { w3.to_ne_bytes() } else { w0.to_ne_bytes() };
    let multicast = if destination.is_v4() { first >= 224 } else { first == 0xff };
    !multicast && !destination.is_link_local_v6()
}

#[cfg(test)]
pub(crate) mod fake {
    //! A mesh of a few addresses.

    use std::net::IpAddr;

    use sluice_abi::{Exemptions, PortUse};

    use super::{IpKey, Local, Mesh, PortKey, ProbeKey};

    pub(crate) struct Fake {
        pub(crate) peers: &'static [&'static str],
        pub(crate) locals: &'static [(&'static str, u32)],
        pub(crate) capture_all: bool,
        /// Exemptions of the pod in slot 1, to which `ports`, `networks` and `probes` belong too.
        pub(crate) exemptions: Exemptions,
        pub(crate) ports: &'static [(PortUse, u16)],
        pub(crate) networks: &'static [&'static str],
        pub(crate) direct: &'static [(&'static str, u16)],
        pub(crate) probes: &'static [(&'static str, u16, &'static str, u16)],
    }

    pub(crate) const FAKE: Fake = Fake {
        peers: &["10.1.0.2", "10.1.0.3", "10.2.0.9", "10.96.0.10", "fd00:1::2", "fd00:1::3"],
        locals: &[
            ("10.1.0.2", 1),
            ("10.1.0.22", 1),
            ("10.1.0.3", 2),
            ("fd00:1::2", 1),
            ("fd00:1::3", 2),
        ],
        capture_all: false,
        exemptions: Exemptions::NONE,
        ports: &[],
        networks: &[],
        direct: &[],
        probes: &[],
    };

    pub(crate) fn key(text: &str) -> IpKey {
        text.parse::<IpAddr>().expect("a test address").into()
    }

    impl Mesh for Fake {
        fn is_peer(&self, address: &IpKey) -> bool {
            self.peers.iter().any(|peer| key(peer) == *address)
        }

        fn capture_all(&self) -> bool {
            self.capture_all
        }

        fn local(&self, address: &IpKey) -> Option<Local> {
            let (_, slot) = self.locals.iter().find(|(local, _)| key(local) == *address)?;
            let exemptions = if *slot == 1 { self.exemptions } else { Exemptions::NONE };
            Some(Local { slot: *slot, workers: 2, exemptions })
        }

        fn is_exempt(&self, port: &PortKey) -> bool {
            let key =
                |(port_use, port): &(PortUse, u16)| PortKey::new(1, *port_use, port.to_be_bytes());
            self.ports.iter().any(|exempt| key(exempt) == *port)
        }

        fn is_exempt_network(&self, slot: u32, address: &IpKey) -> bool {
            slot == 1 && self.networks.iter().any(|network| key(network) == *address)
        }

        fn is_direct(&self, address: &IpKey, port: [u8; 2]) -> bool {
            self.direct
                .iter()
                .any(|(direct, at)| key(direct) == *address && at.to_be_bytes() == port)
        }

        fn is_probe(&self, connection: &ProbeKey, slot: u32) -> bool {
            let probe = |(remote, remote_port, local, local_port): &(&str, u16, &str, u16)| {
                ProbeKey::new(
                    (key(remote), remote_port.to_be_bytes()),
                    (key(local), local_port.to_be_bytes()),
                )
            };
            slot == 1 && self.probes.iter().any(|known| probe(known) == *connection)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Mesh,
        fake::{FAKE, Fake, key},
    };

    #[test]
    fn only_peers_are_covered_while_they_fit() {
        assert!(FAKE.covers(&key("10.96.0.10")));
        assert!(!FAKE.covers(&key("1.1.1.1")));
    }

    #[test]
    fn everything_routed_is_covered_once_they_do_not_fit() {
        let full = Fake { capture_all: true, ..FAKE };
        for covered in ["10.96.0.10", "1.1.1.1", "2001:db8::1"] {
            assert!(full.covers(&key(covered)), "{covered}");
        }
        for local in ["224.0.0.251", "255.255.255.255", "ff02::fb", "fe80::1"] {
            assert!(!full.covers(&key(local)), "{local}");
        }
    }
}
