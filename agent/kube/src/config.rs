//! The settings of the source.

use std::path::PathBuf;

use sluice_cluster::Settings;

/// How to reach the cluster, and how to understand its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeConfig {
    /// A kubeconfig file; `None` uses the service account of the agent's own pod.
    pub kubeconfig: Option<PathBuf>,
    /// Name of the agent's node.
    pub node: String,
    /// The directory where the known state is remembered; each agent of a machine has its own.
    pub directory: PathBuf,
    /// How objects are understood.
    pub settings: Settings,
    /// The agent's own objects in the cluster; `None` for an agent that runs outside the cluster.
    pub installation: Option<Installation>,
}

/// The agent's own objects in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Its namespace.
    pub namespace: String,
    /// The DaemonSet that its pod belongs to.
    pub daemon_set: String,
    /// Its pod.
    pub pod: String,
}
