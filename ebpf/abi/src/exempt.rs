//! The part of an enrolled pod's traffic that the mesh leaves alone: opt-outs, and the kubelet's
//! probes.

use core::mem::{offset_of, size_of};

use crate::IpKey;

/// The kinds of exemption that a pod has. Records that a hook looks up anyway carry this set, so a
/// pod without exemptions costs nothing.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exemptions(u32);

impl Exemptions {
    /// No exemption.
    pub const NONE: Self = Self(0);
    /// Inbound ports that are the application's own.
    pub const INBOUND_PORTS: Self = Self(1);
    /// Outbound ports that are reached without the mesh.
    pub const OUTBOUND_PORTS: Self = Self(2);
    /// Networks that are reached without the mesh.
    pub const OUTBOUND_NETWORKS: Self = Self(4);
    /// Ports that the kubelet may probe.
    pub const PROBES: Self = Self(8);

    /// Adds `more` if `present`.
    #[must_use]
    pub const fn with(self, more: Self, present: bool) -> Self {
        if present { Self(self.0 | more.0) } else { self }
    }

    /// Keeps only the kinds that are in `kept` too.
    #[must_use]
    pub const fn and(self, kept: Self) -> Self {
        Self(self.0 & kept.0)
    }

    /// Whether the set has any of `wanted`.
    #[must_use]
    #[inline(always)]
    pub const fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 != 0
    }

    /// Whether the set is empty.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

/// The purpose for which a pod's port is exempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PortUse {
    /// Connections to the port are left to the application.
    Inbound,
    /// The pod's connections to this port, at any address, are left alone.
    Outbound,
    /// The kubelet may probe the port.
    Probe,
}

/// An exempt port of a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortKey {
    slot: u32,
    port: [u8; 2],
    port_use: u8,
    padding: u8,
}

const _: () = {
    assert!(size_of::<PortKey>() == 8);
    assert!(offset_of!(PortKey, port) == 4);
    assert!(offset_of!(PortKey, port_use) == 6);
};

impl PortKey {
    /// A port, in network order, of the pod in `slot`.
    #[must_use]
    #[inline(always)]
    pub const fn new(slot: u32, port_use: PortUse, port: [u8; 2]) -> Self {
        let port_use = match port_use {
            PortUse::Inbound => 1,
            PortUse::Outbound => 2,
            PortUse::Probe => 3,
        };
        Self { slot, port, port_use, padding: 0 }
    }

    /// The pod's slot.
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.slot
    }
}

/// An address as one pod sees it: what a network prefix is compared with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodNetwork {
    /// Slot and family. The family keeps `::/0` from matching IPv4-mapped addresses.
    owner: u32,
    address: IpKey,
}

const _: () = assert!(size_of::<PodNetwork>() == 20);

impl PodNetwork {
    /// Bits of owner and address: the prefix length for looking up a single address.
    pub const WHOLE: u32 = 32 + 128;

    /// Makes the lookup key of an address for the pod in `slot`.
    #[must_use]
    #[inline(always)]
    pub const fn new(slot: u32, address: IpKey) -> Self {
        let family = if address.is_v4() { 0 } else { 1 };
        Self { owner: slot.wrapping_mul(2).wrapping_add(family), address }
    }
}

/// A network that a pod reaches without the mesh, as a key of a longest-prefix map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetworkKey {
    prefix_length: u32,
    network: PodNetwork,
}

const _: () = {
    assert!(size_of::<NetworkKey>() == 24);
    assert!(offset_of!(NetworkKey, network) == 4);
};

impl NetworkKey {
    /// Makes the key of the network that `address` and a prefix of `length` bits of its own family
    /// describe. Returns `None` if the family has no such prefix.
    #[must_use]
    pub fn new(slot: u32, address: IpKey, length: u8) -> Option<Self> {
        let (skipped, bits) = if address.is_v4() { (96, 32) } else { (0, 128) };
        let length = u32::from(length);
        if length > bits {
            return None;
        }
        Some(Self { prefix_length: 32 + skipped + length, network: PodNetwork::new(slot, address) })
    }

    /// The pod's slot.
    #[must_use]
    pub const fn slot(&self) -> u32 {
        self.network.owner / 2
    }
}

/// A destination that every pod of the node reaches without the mesh.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectKey {
    address: IpKey,
    port: [u8; 2],
    padding: [u8; 2],
}

const _: () = {
    assert!(size_of::<DirectKey>() == 20);
    assert!(offset_of!(DirectKey, port) == 16);
};

impl DirectKey {
    /// A destination; `port` is in network order.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: IpKey, port: [u8; 2]) -> Self {
        Self { address, port, padding: [0; 2] }
    }
}

/// A connection of the kubelet to a pod, as the pod sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeKey {
    remote: IpKey,
    local: IpKey,
    remote_port: [u8; 2],
    local_port: [u8; 2],
}

const _: () = {
    assert!(size_of::<ProbeKey>() == 36);
    assert!(offset_of!(ProbeKey, remote_port) == 32);
};

impl ProbeKey {
    /// The connection from `remote` to the pod's `local`, each an address and a port in network order.
    #[must_use]
    #[inline(always)]
    pub const fn new(remote: (IpKey, [u8; 2]), local: (IpKey, [u8; 2])) -> Self {
        Self { remote: remote.0, local: local.0, remote_port: remote.1, local_port: local.1 }
    }

    /// Stands for every connection between two addresses, for packets that do not show their ports.
    #[must_use]
    #[inline(always)]
    pub const fn any_port(remote: IpKey, local: IpKey) -> Self {
        Self { remote, local, remote_port: [0; 2], local_port: [0; 2] }
    }

    /// Stands for every connection between the addresses of this one.
    #[must_use]
    #[inline(always)]
    pub const fn to_any_port(self) -> Self {
        Self::any_port(self.remote, self.local)
    }

    /// The pod's port, in network order.
    #[must_use]
    #[inline(always)]
    pub const fn local_port(&self) -> [u8; 2] {
        self.local_port
    }
}

/// When the kubelet opened a connection, and to which pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Time of the connection's SYN by the monotonic clock, in nanoseconds.
    pub opened_at: u64,
    /// The pod's slot.
    pub slot: u32,
    /// Always zero.
    pub padding: u32,
}

const _: () = assert!(size_of::<Probe>() == 16);

impl Probe {
    /// How long after its SYN a connection counts as the kubelet's. The client cannot reuse an
    /// address and port within this time (`TIME_WAIT`), and no probe lasts as long.
    pub const LIFETIME_NS: u64 = 60_000_000_000;

    /// Whether the connection may still exist.
    #[must_use]
    #[inline(always)]
    pub const fn is_fresh(&self, now: u64) -> bool {
        now.wrapping_sub(self.opened_at) < Self::LIFETIME_NS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> IpKey {
        text.parse::<core::net::IpAddr>().unwrap().into()
    }

    #[test]
    fn exemptions_add_up() {
        let some = Exemptions::NONE
            .with(Exemptions::PROBES, true)
            .with(Exemptions::OUTBOUND_PORTS, false)
            .with(Exemptions::INBOUND_PORTS, true);
        assert!(some.has(Exemptions::PROBES) && some.has(Exemptions::INBOUND_PORTS));
        assert!(!some.has(Exemptions::OUTBOUND_PORTS) && !some.is_none());
        assert!(some.and(Exemptions::OUTBOUND_NETWORKS).is_none());
    }

    #[test]
    fn a_prefix_counts_the_bits_of_its_own_family() {
        let prefix = |text, length| NetworkKey::new(1, key(text), length).map(|k| k.prefix_length);
        assert_eq!(prefix("10.0.0.0", 8), Some(32 + 96 + 8));
        assert_eq!(prefix("0.0.0.0", 0), Some(32 + 96));
        assert_eq!(prefix("fd00::", 8), Some(32 + 8));
        assert_eq!(prefix("10.0.0.1", 32), Some(PodNetwork::WHOLE));
        assert_eq!(prefix("10.0.0.1", 33), None);
        assert_eq!(prefix("fd00::1", 128), Some(PodNetwork::WHOLE));
    }

    #[test]
    fn networks_of_two_pods_or_families_share_no_prefix() {
        let owner = |slot, text| PodNetwork::new(slot, key(text)).owner;
        let all = [owner(1, "0.0.0.0"), owner(1, "::"), owner(2, "0.0.0.0"), owner(2, "::")];
        assert_eq!(all.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        assert_eq!(NetworkKey::new(7, key("fd00::"), 8).unwrap().slot(), 7);
    }

    #[test]
    fn a_connection_is_the_kubelets_for_a_minute() {
        let probe = Probe { opened_at: 100, slot: 1, padding: 0 };
        assert!(probe.is_fresh(100) && probe.is_fresh(100 + Probe::LIFETIME_NS - 1));
        assert!(!probe.is_fresh(100 + Probe::LIFETIME_NS));
        assert!(!probe.is_fresh(0), "a clock that went back widens nothing");
    }
}
