//! The operator's view of enrolment.

use std::{net::IpAddr, time::SystemTime};

use sluice_kernel::PodCounters;
use sluice_mesh::WorkloadUid;
use sluice_spiffe::WorkloadName;

/// A pod that the mesh wants captured on this node, and whether it is.
#[derive(Clone, Debug)]
pub struct PodStatus {
    /// Identifier that is never used for another pod.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: String,
    /// Namespace and service account.
    pub account: WorkloadName,
    /// Declared addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether this agent found it already running, instead of being told of it before its first
    /// instruction.
    pub was_running: bool,
    /// Whether it is captured.
    pub state: PodState,
    /// When this agent last enrolled it; `None` if it is not captured.
    pub enrolled_at: Option<SystemTime>,
    /// The kernel's counts; `None` if it is not captured.
    pub counters: Option<PodCounters>,
    /// Connections destroyed when it was enrolled, when peers joined the mesh, or when exemptions
    /// ended.
    pub connections_destroyed: usize,
}

/// Whether a pod is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PodState {
    /// Captured as declared.
    Captured,
    /// Captured, but not as it should be.
    Impaired {
        /// What is wrong.
        reason: String,
    },
    /// Not captured by this agent. If an earlier agent had captured the pod, its connections are
    /// refused; otherwise they are left alone.
    Refused {
        /// Why it is not captured.
        reason: String,
    },
}
