//! A pod as the caller describes it to the datapath, and as the datapath finds it.

use std::{net::IpAddr, os::fd::BorrowedFd, time::Duration};

use crate::{Error, PodExemptions};

/// The kernel's counts of a pod's connections.
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
    /// The pod's addresses. The first of each family is its primary one, to which captured
    /// connections are bound.
    pub addresses: &'a [IpAddr],
    /// Interface indexes of the host ends of the pod's veths, in the namespace of the calling thread.
    pub guard_ifindexes: &'a [u32],
    /// The agent's sockets for the pod, one entry per worker.
    pub workers: &'a [WorkerSockets<'a>],
    /// Traffic of the pod that the mesh leaves alone.
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

/// How the kernel is to recognise the kubelet, in addition to the node's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kubelet {
    /// By a cgroup v2 that holds only the kubelet and its children, given as the directory's inode.
    Cgroup(u64),
    /// By its process, if it shares its cgroup with others.
    Process {
        /// Process ID in the initial PID namespace.
        id: u32,
        /// How long the ID is believed unless it is set again: the kubelet may end while no agent
        /// is there, and another process may get its ID.
        believed_for: Duration,
    },
}

/// The sockets with which one worker serves a pod; connections of an absent family are refused.
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
    /// Indexes of the interfaces that are guarded for it.
    pub guard_ifindexes: Vec<u32>,
}

/// Whether a pod is captured, according to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureState {
    /// Node-wide hooks of this instance that are not in effect on the cgroup, by program name.
    pub missing_hooks: Vec<&'static str>,
    /// Whether the map that the connect hooks look up has the pod's namespace.
    pub enrolled: bool,
    /// Whether our inbound program is attached to this very namespace.
    pub inbound: bool,
    /// The guards, one per interface.
    pub guards: Vec<GuardState>,
    /// Interfaces on which probes are not recognised though the pod declares probe ports.
    pub unprobed: Vec<u32>,
}

/// Whether an interface is guarded, according to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardState {
    /// Index of the interface.
    pub ifindex: u32,
    /// Whether our guard runs on its ingress.
    pub attached: bool,
}

impl CaptureState {
    /// Whether nothing can enter or leave the pod unseen: every hook is in effect, and there is at
    /// least one guard.
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
