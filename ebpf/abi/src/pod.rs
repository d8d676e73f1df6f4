//! An enrolled pod, as the hooks look it up.

use core::mem::{offset_of, size_of};

use crate::{Exemptions, IpKey, MAX_WORKERS};

const WORKERS: usize = MAX_WORKERS as usize;

/// Address family of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4, and IPv4 through a dual-stack socket.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address; a mapped one is IPv4.
    #[must_use]
    #[inline(always)]
    pub const fn of(address: &IpKey) -> Self {
        if address.is_v4() { Self::V4 } else { Self::V6 }
    }
}

/// The addresses that a pod's captured connections are bound to; unspecified for a family that the
/// pod lacks.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodAddresses {
    /// Primary IPv4 address, mapped.
    pub v4: IpKey,
    /// Primary IPv6 address.
    pub v6: IpKey,
}

/// An enrolled pod, found by the cookie of its network namespace.
///
/// The number of workers is kept per pod, not in the program: a restarted agent may have a different
/// number, and one map update moves a pod to the new listeners.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod {
    slot: u32,
    workers: u32,
    addresses: PodAddresses,
    out_ports_v4: [[u8; 2]; WORKERS],
    out_ports_v6: [[u8; 2]; WORKERS],
    exemptions: Exemptions,
}

const _: () = {
    assert!(size_of::<Pod>() == 76);
    assert!(offset_of!(Pod, addresses) == 8);
    assert!(offset_of!(Pod, out_ports_v4) == 40);
    assert!(offset_of!(Pod, out_ports_v6) == 56);
    assert!(offset_of!(Pod, exemptions) == 72);
};

impl Pod {
    /// Makes a pod in `slot` whose agent has no listener yet: its connections are refused.
    #[must_use]
    pub const fn new(slot: u32, addresses: PodAddresses) -> Self {
        Self {
            slot,
            workers: 0,
            addresses,
            out_ports_v4: [[0; 2]; WORKERS],
            out_ports_v6: [[0; 2]; WORKERS],
            exemptions: Exemptions::NONE,
        }
    }

    /// The same pod with these exemptions.
    #[must_use]
    pub const fn with_exemptions(self, exemptions: Exemptions) -> Self {
        Self { exemptions, ..self }
    }

    /// The kinds of the pod's traffic that the mesh leaves alone.
    #[must_use]
    #[inline(always)]
    pub const fn exemptions(&self) -> Exemptions {
        self.exemptions
    }

    /// Adds a worker with its outbound ports; port 0 means that it does not listen on that family.
    /// Returns `None` if there are [`MAX_WORKERS`] already.
    #[must_use]
    pub fn with_worker(mut self, v4: u16, v6: u16) -> Option<Self> {
        let worker = usize::try_from(self.workers).ok()?;
        *self.out_ports_v4.get_mut(worker)? = v4.to_be_bytes();
        *self.out_ports_v6.get_mut(worker)? = v6.to_be_bytes();
        self.workers = self.workers.wrapping_add(1);
        Some(self)
    }

    /// Slot of the pod's listeners and counters.
    #[must_use]
    #[inline(always)]
    pub const fn slot(&self) -> u32 {
        self.slot
    }

    /// Number of workers that listen for the pod.
    #[must_use]
    #[inline(always)]
    pub const fn workers(&self) -> u32 {
        self.workers
    }

    /// The pod's primary address of a family; unspecified if it has none.
    #[must_use]
    #[inline(always)]
    pub const fn primary(&self, family: Family) -> &IpKey {
        match family {
            Family::V4 => &self.addresses.v4,
            Family::V6 => &self.addresses.v6,
        }
    }

    /// Outbound port, in network order, of the worker that serves `cpu`; `None` if it has none.
    #[must_use]
    #[inline(always)]
    pub fn out_port(&self, family: Family, cpu: u32) -> Option<[u8; 2]> {
        let worker = cpu.checked_rem(self.workers)?;
        let ports = match family {
            Family::V4 => &self.out_ports_v4,
            Family::V6 => &self.out_ports_v6,
        };
        // The mask bounds the index for the verifier, which does not follow a remainder.
        let port = *ports.get((worker % MAX_WORKERS) as usize)?;
        if port == [0; 2] { None } else { Some(port) }
    }

    /// Whether a port, in network order, is one of the agent's outbound listeners for this pod.
    #[must_use]
    #[inline(always)]
    pub fn is_out_port(&self, port: [u8; 2]) -> bool {
        port != [0; 2] && (self.out_ports_v4.contains(&port) || self.out_ports_v6.contains(&port))
    }
}

/// The enrolled pod behind an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Local {
    /// The pod's slot.
    pub slot: u32,
    /// Number of workers that listen for it.
    pub workers: u32,
    /// The kinds of the pod's traffic that the mesh leaves alone.
    pub exemptions: Exemptions,
}

const _: () = assert!(size_of::<Local>() == 12);

/// The enrolled pod behind a host veth.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guarded {
    /// The pod's slot.
    pub slot: u32,
    /// The kinds of the pod's traffic that the mesh leaves alone.
    pub exemptions: Exemptions,
}

const _: () = assert!(size_of::<Guarded>() == 8);

/// Returns the index in the listener map for the worker that serves `cpu`; `None` if the pod has no
/// worker.
#[must_use]
#[inline(always)]
pub fn listener_index(local: Local, cpu: u32, family: Family) -> Option<u32> {
    let worker = cpu.checked_rem(local.workers)?;
    let family = match family {
        Family::V4 => 0,
        Family::V6 => 1,
    };
    local
        .slot
        .checked_mul(MAX_WORKERS * 2)?
        .checked_add(worker.checked_mul(2)?)?
        .checked_add(family)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: PodAddresses = PodAddresses { v4: IpKey::UNSPECIFIED, v6: IpKey::UNSPECIFIED };

    #[test]
    fn a_pod_without_workers_has_no_port() {
        assert_eq!(Pod::new(1, NOWHERE).out_port(Family::V4, 0), None);
        assert_eq!(
            listener_index(
                Local { slot: 1, workers: 0, exemptions: Exemptions::NONE },
                0,
                Family::V4
            ),
            None
        );
    }

    #[test]
    fn cpus_share_the_workers_in_turn() {
        let pod =
            Pod::new(1, NOWHERE).with_worker(1001, 0).unwrap().with_worker(1002, 2002).unwrap();
        let port = |family, cpu| pod.out_port(family, cpu).map(u16::from_be_bytes);
        assert_eq!((port(Family::V4, 0), port(Family::V4, 1)), (Some(1001), Some(1002)));
        assert_eq!((port(Family::V4, 2), port(Family::V4, 3)), (Some(1001), Some(1002)));
        assert_eq!((port(Family::V6, 0), port(Family::V6, 1)), (None, Some(2002)));
        assert!(pod.is_out_port(1002_u16.to_be_bytes()) && !pod.is_out_port([0; 2]));
    }

    #[test]
    fn there_is_no_ninth_worker() {
        let mut pod = Pod::new(1, NOWHERE);
        for port in 1..=8 {
            pod = pod.with_worker(port, port).unwrap();
        }
        assert_eq!(pod.with_worker(9, 9), None);
    }

    #[test]
    fn listeners_of_slots_workers_and_families_never_share_an_index() {
        let mut seen = std::collections::HashSet::new();
        for slot in 1..4 {
            for cpu in 0..MAX_WORKERS {
                for family in [Family::V4, Family::V6] {
                    let local = Local { slot, workers: MAX_WORKERS, exemptions: Exemptions::NONE };
                    assert!(seen.insert(listener_index(local, cpu, family).unwrap()));
                }
            }
        }
    }
}
