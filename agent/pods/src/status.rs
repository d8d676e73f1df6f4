//! The operator's view of enrolment.

use std::{net::IpAddr, time::SystemTime};

use sluice_kernel::PodCounters;
use sluice_mesh::WorkloadUid;
use sluice_spiffe::WorkloadName;

/// A pod that the mesh wants captured on this node, and how far that is so.
#[derive(Clone, Debug)]
pub struct PodStatus {
    /// Unique over time.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: String,
    /// Namespace and service account.
    pub account: WorkloadName,
    /// Declared addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether this agent found it running, instead of being told of it before its first instruction.
    pub was_running: bool,
    /// Whether it is captured.
    pub state: PodState,
    /// Since when this agent captures it.
    pub enrolled_at: Option<SystemTime>,
    /// What the kernel counted; `None` when it is not captured.
    pub counters: Option<PodCounters>,
    /// Connections destroyed when it was enrolled, and when peers of it joined the mesh.
    pub connections_destroyed: usize,
}

/// Whether a pod is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PodState {
    /// As declared.
    Captured,
    /// Captured, but not as it should be.
    Impaired {
        /// What is wrong.
        reason: String,
    },
    /// Not captured by this agent. If the agent before it had captured the pod, its connections are
    /// refused; otherwise they are its own business.
    Refused {
        /// Why.
        reason: String,
    },
}
