//! The kernel's counts of a pod's connections.

use core::mem::size_of;

/// Counts of one pod since its enrolment. The kernel keeps them per CPU; the agent sums them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Outbound connections handed to the agent.
    pub captured: u64,
    /// Outbound connections to destinations that the mesh does not know.
    pub direct: u64,
    /// Outbound connections refused.
    pub denied: u64,
    /// Inbound connections handed to the agent.
    pub inbound: u64,
    /// Inbound connections refused because no listener was there.
    pub inbound_dropped: u64,
    /// Packets that the guard stopped.
    pub guard_drops: u64,
    /// UDP packets to mesh peers, which are not encrypted.
    pub udp: u64,
    /// Failures inside the hooks.
    pub errors: u64,
    /// Connections, in and out, that an opt-out keeps out of the mesh.
    pub bypassed: u64,
    /// Connections of the kubelet to ports that the pod declares for probes.
    pub probes: u64,
}

const _: () = assert!(size_of::<Counters>() == 80);

impl Counters {
    /// The sum of two CPUs' counts.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            captured: self.captured.wrapping_add(other.captured),
            direct: self.direct.wrapping_add(other.direct),
            denied: self.denied.wrapping_add(other.denied),
            inbound: self.inbound.wrapping_add(other.inbound),
            inbound_dropped: self.inbound_dropped.wrapping_add(other.inbound_dropped),
            guard_drops: self.guard_drops.wrapping_add(other.guard_drops),
            udp: self.udp.wrapping_add(other.udp),
            errors: self.errors.wrapping_add(other.errors),
            bypassed: self.bypassed.wrapping_add(other.bypassed),
            probes: self.probes.wrapping_add(other.probes),
        }
    }
}
