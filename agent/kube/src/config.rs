//! What the source goes by.

use std::path::PathBuf;

use sluice_cluster::Settings;

/// How the cluster is reached and understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeConfig {
    /// A kubeconfig file; `None` uses the service account of the agent's own pod.
    pub kubeconfig: Option<PathBuf>,
    /// Name of the agent's node.
    pub node: String,
    /// Where what is known is remembered; each agent of a machine has its own.
    pub directory: PathBuf,
    /// How objects are understood.
    pub settings: Settings,
    /// What of the cluster is the agent itself; `None` for one that runs outside of it.
    pub installation: Option<Installation>,
}

/// The agent as an object of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Its namespace.
    pub namespace: String,
    /// The DaemonSet that it is one of.
    pub daemon_set: String,
    /// Its pod.
    pub pod: String,
}
