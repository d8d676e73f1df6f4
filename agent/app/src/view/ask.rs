//! Decides whether to ask this machine's agent or those of a cluster.

use std::path::{Path, PathBuf};

use sluice_kube::{Access, Operator};

use crate::args::ViewOptions;

/// Where an agent listens unless told otherwise.
const SOCKET: &str = "/run/sluice/agent.sock";
/// Where the chart installs Sluice unless told otherwise.
const NAMESPACE: &str = "sluice-system";

/// Who is asked.
pub(crate) enum Route {
    /// The agent behind this socket.
    Local(PathBuf),
    /// The agents of a cluster.
    Cluster(Operator),
}

/// Decides whom to ask: the socket or cluster that the options name; otherwise an agent on this machine; otherwise a
/// cluster.
pub(crate) async fn route(options: &ViewOptions) -> anyhow::Result<Route> {
    let ViewOptions { socket, kubeconfig, context, namespace, node, .. } = options;
    if let Some(socket) = socket {
        return Ok(Route::Local(socket.clone()));
    }
    let names_cluster =
        kubeconfig.is_some() || context.is_some() || namespace.is_some() || !node.is_empty();
    if !names_cluster && Path::new(SOCKET).exists() {
        return Ok(Route::Local(SOCKET.into()));
    }
    let access = Access { kubeconfig: kubeconfig.clone(), context: context.clone() };
    let operator = access.open(namespace.as_deref().unwrap_or(NAMESPACE)).await?;
    Ok(Route::Cluster(operator))
}
