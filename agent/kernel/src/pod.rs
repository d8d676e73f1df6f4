//! A pod as the datapath is told of it, and as it finds it.

use std::{net::IpAddr, os::fd::BorrowedFd, time::Duration};

use crate::{Error, PodExemptions};

/// What the kernel counts of a pod's connections.
pub type PodCounters = sluice_abi::Counters;

/// Everything that enrolling a pod needs.
#[derive(Clone, Copy, Debug)]
pub struct PodHooks<'a> {
    /// Cookie of the pod's network namespace (`SO_NETNS_COOKIE`); never the host's own.
    pub cookie: u64,
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// Slot to use; `None` keeps the pod's slot, or takes the lowest free one.
    pub slot: Option<u32>,
    /// The pod's addresses; the first of each family is its primary one, to which captured
    /// connections are bound.
    pub addresses: &'a [IpAddr],
    /// Interface indexes of the host ends of the pod's veths, in the namespace of the calling thread.
    pub guard_ifindexes: &'a [u32],
    /// The agent's sockets for the pod, one entry per worker.
    pub workers: &'a [WorkerSockets<'a>],
    /// What of its traffic the mesh leaves alone.
    pub exemptions: &'a PodExemptions,
}

/// A pod that has been enrolled.
#[derive(Debug)]
pub struct Placed {
    /// Its slot.
    pub slot: u32,
    /// Whether its exemptions are in force. If not, the pod is captured all the same, and what could
    /// not be exempted is treated like all other traffic.
    pub exempt: Result<(), Error>,
}

/// By what the kernel is to know the kubelet, beside the node's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// By a cgroup v2 that only the kubelet and its children are in: the directory's inode.
    Cgroup(u64),
    /// By its process, where it shares its cgroup with others.
    Process {
        /// In the initial PID namespace.
        id: u32,
        /// How long this is believed unless it is said again: the kubelet may end while no agent is
        /// there, and its number become another process's.
        believed_for: Duration,
    },
}

/// The sockets of one worker that serve a pod; a family that is absent is refused.
#[derive(Clone, Copy, Debug)]
pub struct WorkerSockets<'a> {
    /// Port of its outbound listener on 127.0.0.1.
    pub out_port_v4: Option<u16>,
    /// Port of its outbound listener on `::1`.
    pub out_port_v6: Option<u16>,
    /// Its listener for inbound IPv4 connections.
    pub in_v4: Option<BorrowedFd<'a>>,
    /// Its listener for inbound IPv6 connections.
    pub in_v6: Option<BorrowedFd<'a>>,
}

/// A pod that the maps say is enrolled, by this agent or the one before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrolled {
    /// Cookie of its network namespace.
    pub cookie: u64,
    /// Its slot.
    pub slot: u32,
    /// Its addresses, in no order.
    pub addresses: Vec<IpAddr>,
    /// Interfaces that are guarded for it.
    pub guard_ifindexes: Vec<u32>,
}

/// Whether a pod is captured, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureState {
    /// Node-wide hooks of this instance that are not in effect on the cgroup, by program name.
    pub missing_hooks: Vec<&'static str>,
    /// The pod's namespace is looked up by the connect hooks.
    pub enrolled: bool,
    /// Our inbound program is attached to this very namespace.
    pub inbound: bool,
    /// The guards, one per interface.
    pub guards: Vec<GuardState>,
    /// Interfaces, of a pod that declares probe ports, on which probes are not recognised.
    pub unprobed: Vec<u32>,
}

/// Whether an interface is guarded, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardState {
    /// Index of the interface.
    pub ifindex: u32,
    /// Our guard runs on its ingress.
    pub attached: bool,
}

impl CaptureState {
    /// Whether nothing can enter or leave the pod unseen: every hook in effect and at least one guard.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.missing_hooks.is_empty()
            && self.enrolled
            && self.inbound
            && !self.guards.is_empty()
            && self.guards.iter().all(|guard| guard.attached)
            && self.unprobed.is_empty()
    }
}
