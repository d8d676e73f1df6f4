//! What happened to pods, for the log and for the code that tells the cluster.

use sluice_kernel::{DirectFill, PeerFill};
use sluice_mesh::WorkloadUid;

/// Something that enrolment did, or could not do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PodEvent {
    /// A pod is captured that was not before, or only by an earlier agent.
    Captured {
        /// The pod.
        pod: WorkloadUid,
        /// Whether an earlier agent had enrolled it: there was no moment without capture.
        adopted: bool,
        /// Connections to mesh peers that were destroyed because they were older than the capture.
        destroyed: usize,
    },
    /// The part of a captured pod's traffic that is left alone has changed.
    Exempted {
        /// The pod.
        pod: WorkloadUid,
        /// Connections destroyed because they are no longer left alone.
        destroyed: usize,
    },
    /// More destinations are declared to be reached without the mesh than the kernel has room for; the
    /// rest are reached through it.
    DirectOverflow(DirectFill),
    /// The destinations that are reached without the mesh could not be set in the kernel; the next
    /// audit tries again.
    DirectFailed {
        /// Why they could not be set.
        reason: String,
    },
    /// A captured pod was enrolled anew because its declaration changed.
    Renewed {
        /// The pod.
        pod: WorkloadUid,
    },
    /// An audit found that a captured pod was not wholly captured, and mended it.
    Repaired {
        /// The pod.
        pod: WorkloadUid,
        /// What was missing or had changed.
        found: String,
    },
    /// A pod is not captured, though the mesh wants it to be.
    Refused {
        /// The pod.
        pod: WorkloadUid,
        /// Why it is not captured.
        reason: String,
    },
    /// A pod is captured, but something about it is not as it should be.
    Impaired {
        /// The pod.
        pod: WorkloadUid,
        /// What is wrong.
        reason: String,
    },
    /// Connections were destroyed because their peer has joined the mesh, or is no longer reached
    /// without it.
    Cut {
        /// The pod that had them.
        pod: WorkloadUid,
        /// Number of connections.
        connections: usize,
    },
    /// Connections that should end, as for [`PodEvent::Cut`], could not be destroyed; the guard
    /// stops them instead, so they hang.
    CutFailed {
        /// The pod that has them.
        pod: WorkloadUid,
        /// Why they could not be destroyed.
        reason: String,
    },
    /// A pod is no longer captured.
    Withdrawn {
        /// The pod; `None` for one that an earlier agent enrolled and nobody declares.
        pod: Option<WorkloadUid>,
        /// Cookie of its network namespace.
        cookie: u64,
        /// Why it was withdrawn.
        departure: Departure,
    },
    /// The hooks could not release a namespace; its connections stay refused, and the next audit
    /// tries again.
    WithdrawFailed {
        /// Cookie of the network namespace.
        cookie: u64,
        /// Why the release failed.
        reason: String,
    },
    /// The pods that an earlier agent enrolled could not be read; none of them is withdrawn.
    AdoptionFailed {
        /// Why they could not be read.
        reason: String,
    },
    /// The kernel has room for few more peers, or already too little.
    PeersNearlyFull(PeerFill),
    /// The present peers could not be set in the kernel; the next audit tries again.
    PeersFailed {
        /// Why they could not be set.
        reason: String,
    },
}

/// Why a pod was withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Departure {
    /// The mesh no longer declares it for this node.
    Undeclared,
    /// Its network namespace has gone from its path.
    NamespaceGone,
    /// Its path, or its declaration, leads to another network namespace.
    NamespaceReplaced,
}

impl PodEvent {
    pub(crate) fn log(&self) {
        match self {
            Self::Captured { pod, adopted, destroyed } => {
                tracing::info!(%pod, adopted, destroyed, "pod captured");
            }
            Self::Exempted { pod, destroyed } => {
                tracing::info!(%pod, destroyed, "opt-outs or probe ports of pod changed");
            }
            Self::DirectOverflow(fill) => {
                let DirectFill { wanted, capacity, .. } = fill;
                tracing::warn!(wanted, capacity, "table of direct destinations overflows");
            }
            Self::DirectFailed { reason } => {
                tracing::error!(reason, "direct destinations not set");
            }
            Self::Renewed { pod } => tracing::info!(%pod, "pod enrolled anew"),
            Self::Repaired { pod, found } => tracing::warn!(%pod, found, "capture of pod mended"),
            Self::Refused { pod, reason } => tracing::error!(%pod, reason, "pod not captured"),
            Self::Impaired { pod, reason } => {
                tracing::error!(%pod, reason, "pod captured, but not as it should be");
            }
            Self::Cut { pod, connections } => {
                tracing::info!(%pod, connections, "older connections to new mesh peers destroyed");
            }
            Self::CutFailed { pod, reason } => {
                tracing::warn!(%pod, reason, "older connections to mesh peers will hang");
            }
            Self::Withdrawn { pod, cookie, departure } => {
                let pod = pod.as_ref().map_or("unknown", |pod| &pod.0);
                tracing::info!(pod, cookie, ?departure, "pod withdrawn");
            }
            Self::WithdrawFailed { cookie, reason } => {
                tracing::error!(cookie, reason, "namespace still captured: its connections fail");
            }
            Self::AdoptionFailed { reason } => {
                tracing::error!(reason, "pods of the agent before this one are unknown");
            }
            Self::PeersNearlyFull(fill) => {
                let PeerFill { wanted, capacity, capture_all, .. } = fill;
                tracing::warn!(wanted, capacity, capture_all, "table of mesh peers nearly full");
            }
            Self::PeersFailed { reason } => tracing::error!(reason, "mesh peers not set"),
        }
    }
}
