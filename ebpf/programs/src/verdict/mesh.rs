//! What the verdicts ask the maps.

use sluice_abi::{IpKey, Local};

/// The maps, as far as verdicts need them.
pub trait Mesh {
    /// Whether this is the address of a mesh pod or service.
    fn is_peer(&self, address: &IpKey) -> bool;

    /// Whether every destination counts as a peer, because not all peers fit into their map.
    fn capture_all(&self) -> bool;

    /// The enrolled pod of this node that has the address.
    fn local(&self, address: &IpKey) -> Option<Local>;

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

    use super::{IpKey, Local, Mesh};

    pub(crate) struct Fake {
        pub(crate) peers: &'static [&'static str],
        pub(crate) locals: &'static [(&'static str, u32)],
        pub(crate) capture_all: bool,
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
            Some(Local { slot: *slot, workers: 2 })
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
