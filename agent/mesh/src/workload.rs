//! One pod, as every agent of the mesh sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use sluice_spiffe::{SpiffeId, WorkloadName};

use crate::Bypass;

/// Labels of a pod. Pods of one template share theirs.
pub type Labels = Arc<BTreeMap<String, String>>;

/// A pod's name that is unique over time: its Kubernetes UID, or `namespace/name` in the file source.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadUid(pub Arc<str>);

/// A pod: its names, where it is, and whether the mesh carries its traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique over time, even when the pod's address is used again.
    pub uid: WorkloadUid,
    /// The UID by which its node knows it, if that is another one: Kubernetes' static pods.
    pub static_uid: Option<Arc<str>>,
    /// Pod name.
    pub name: String,
    /// Namespace and service account, which its certificate names.
    pub account: WorkloadName,
    /// The identity in its certificate.
    pub identity: SpiffeId,
    /// Pod labels, for the selectors of services and policies.
    pub labels: Labels,
    /// All addresses of the pod. The first of each family is the source of its connections when the application does
    /// not bind.
    pub addresses: Vec<IpAddr>,
    /// Name of the node that it runs on.
    pub node: String,
    /// Zone of that node, where known.
    pub zone: Option<String>,
    /// Whether the pod is enrolled, whichever node it is on.
    pub in_mesh: bool,
    /// Path of its network namespace, meaningful only on its own node.
    pub netns: Option<PathBuf>,
    /// Whether services may send connections to it.
    pub ready: bool,
    /// Traffic that its owner keeps out of the mesh.
    pub bypass: Bypass,
    /// Ports that the kubelet may reach in plaintext even under STRICT: those of its probes.
    pub probe_ports: BTreeSet<u16>,
}

impl Workload {
    /// Returns the address of the given family that is the source of unbound connections.
    pub fn primary_address(&self, ipv6: bool) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv6() == ipv6)
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
