//! Types that the kernel programs and the agent both read.
//!
//! Addresses and ports are big-endian bytes, as on the wire, so neither side converts by accident;
//! IPv4 is always mapped into IPv6, so that one key serves both families. Counts, slots and cookies
//! are in the machine's own order: both readers run on the same machine. Every padding byte is a
//! named field, and the size and offsets are asserted at compile time, because the kernel compares
//! map keys byte by byte.
#![cfg_attr(not(any(feature = "user", test)), no_std)]
#![expect(
    clippy::inline_always,
    reason = "a BPF subprogram returns one register, and the verifier refuses an enum packed into it whose payload is undefined"
)]

mod address;
mod counters;
mod exempt;
mod pod;
mod settings;
mod socket;

pub use address::IpKey;
pub use counters::Counters;
pub use exempt::{
    DirectKey, Exemptions, NetworkKey, PodNetwork, PortKey, PortUse, Probe, ProbeKey,
};
pub use pod::{Family, Guarded, Local, Pod, PodAddresses, listener_index};
pub use settings::{Kubelet, Settings};
pub use socket::{AgentSocket, Endpoint, EndpointKind, PendingKey, Role};

/// Version of this ABI. It changes whenever a map's key, value or meaning does; an agent adopts only
/// maps of its own version.
pub const ABI_VERSION: u32 = 2;

/// Largest number of workers of an agent; fixes the stride of [`listener_index`] and the size of
/// [`Pod`].
pub const MAX_WORKERS: u32 = 8;

/// Slot of [`Counters`] for events that cannot be attributed to a pod; pods' slots start at 1.
pub const UNATTRIBUTED: u32 = 0;

/// Names of the maps, which are also the names of their pins.
pub mod map {
    /// Network namespace cookie (`u64`) to [`Pod`](crate::Pod): who is captured.
    pub const PODS: &str = "PODS";
    /// [`IpKey`](crate::IpKey) of mesh pods and service addresses: what is captured.
    pub const PEERS: &str = "PEERS";
    /// [`IpKey`](crate::IpKey) of enrolled pods to [`Local`](crate::Local).
    pub const LOCAL: &str = "LOCAL";
    /// Interface index (`u32`) of a pod's host veth to [`Guarded`](crate::Guarded).
    pub const GUARDED: &str = "GUARDED";
    /// Socket to [`Endpoint`](crate::Endpoint): the address that its owner should see.
    pub const SK_ORIG: &str = "SK_ORIG";
    /// Socket to [`AgentSocket`](crate::AgentSocket): the agent's own, set from user space only.
    pub const AGENT_SK: &str = "AGENT_SK";
    /// [`PendingKey`](crate::PendingKey) to [`Endpoint`](crate::Endpoint), from connect to accept.
    pub const PENDING: &str = "PENDING";
    /// [`listener_index`](crate::listener_index) to the listening socket for inbound connections.
    pub const LISTENERS: &str = "LISTENERS";
    /// Slot (`u32`) to [`Counters`](crate::Counters), one per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// [`PortKey`](crate::PortKey) to 1: what a pod's ports are exempt for.
    pub const PORTS: &str = "PORTS";
    /// [`NetworkKey`](crate::NetworkKey) to 1: what a pod reaches without the mesh.
    pub const NETWORKS: &str = "NETWORKS";
    /// [`DirectKey`](crate::DirectKey) to 1: what every pod reaches without the mesh.
    pub const DIRECT: &str = "DIRECT";
    /// [`ProbeKey`](crate::ProbeKey) to [`Probe`](crate::Probe): the kubelet's connections to pods.
    pub const PROBES: &str = "PROBES";
    /// The single [`Settings`](crate::Settings) record.
    pub const SETTINGS: &str = "SETTINGS";
}

/// Names of the programs, at most 15 bytes, which is what the kernel keeps.
pub mod program {
    /// `cgroup/connect4`.
    pub const CONNECT4: &str = "sluice_connect4";
    /// `cgroup/connect6`.
    pub const CONNECT6: &str = "sluice_connect6";
    /// `cgroup/getpeername4`.
    pub const PEERNAME4: &str = "sluice_peer4";
    /// `cgroup/getpeername6`.
    pub const PEERNAME6: &str = "sluice_peer6";
    /// `cgroup/getsockname4`.
    pub const SOCKNAME4: &str = "sluice_own4";
    /// `cgroup/getsockname6`.
    pub const SOCKNAME6: &str = "sluice_own6";
    /// `sockops`.
    pub const SOCKOPS: &str = "sluice_sockops";
    /// `sk_lookup`.
    pub const INBOUND: &str = "sluice_inbound";
    /// `classifier`, on the ingress of a pod's host veth.
    pub const GUARD: &str = "sluice_guard";
    /// `classifier`, on the egress of the host veth of a pod that declares probe ports.
    pub const PROBE: &str = "sluice_probe";
}

/// Names of the read-only globals that the loader sets; all are `u8`, and 0 or 1 but for the level.
pub mod tunable {
    /// Whether the kernel lets a connect hook choose the error (`bpf_set_retval`, Linux 5.18).
    pub const HAS_SET_RETVAL: &str = "HAS_SET_RETVAL";
    /// Whether a subflow's MPTCP socket can be found (`bpf_skc_to_mptcp_sock`, Linux 5.19).
    pub const HAS_MPTCP: &str = "HAS_MPTCP";
    /// Level of the programs' diagnostics, where 0 is off; the verifier removes the code of higher
    /// levels.
    pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya::Pod is an unsafe marker trait")]
mod user {
    // SAFETY: four `u32`, any pattern of which is an address.
    unsafe impl aya::Pod for super::IpKey {}
    // SAFETY: an `IpKey` and four bytes; `kind` is a raw byte, decoded only by `Endpoint::kind`.
    unsafe impl aya::Pod for super::Endpoint {}
    // SAFETY: an `IpKey` and four bytes; `role` is a raw byte, never turned into an enum.
    unsafe impl aya::Pod for super::AgentSocket {}
    // SAFETY: integers and bytes whose sizes add up to the asserted 48, tail padding being a field.
    unsafe impl aya::Pod for super::PendingKey {}
    // SAFETY: integers and byte arrays whose sizes add up to the asserted 76, so there is no padding.
    unsafe impl aya::Pod for super::Pod {}
    // SAFETY: three `u32`.
    unsafe impl aya::Pod for super::Local {}
    // SAFETY: two `u32`.
    unsafe impl aya::Pod for super::Guarded {}
    // SAFETY: a `u32` and four bytes.
    unsafe impl aya::Pod for super::PortKey {}
    // SAFETY: two `u32` and an `IpKey`.
    unsafe impl aya::Pod for super::NetworkKey {}
    // SAFETY: an `IpKey` and four bytes.
    unsafe impl aya::Pod for super::DirectKey {}
    // SAFETY: two `IpKey` and four bytes.
    unsafe impl aya::Pod for super::ProbeKey {}
    // SAFETY: a `u64` and two `u32`.
    unsafe impl aya::Pod for super::Probe {}
    // SAFETY: two `u32` and three `u64`.
    unsafe impl aya::Pod for super::Settings {}
    // SAFETY: ten `u64`.
    unsafe impl aya::Pod for super::Counters {}
}
