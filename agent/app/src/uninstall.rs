//! `sluice uninstall`: what has to be done before Sluice is deleted from a cluster.

use std::time::Duration;

use sluice_kube::{ApiServer, Uninstallation};

use crate::{args::UninstallOptions, logging};

/// Returns once no pod is captured any more; otherwise the error says where one is, and what to do.
pub(crate) fn run(options: &UninstallOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = ApiServer::open(options.kubeconfig.as_deref()).await?;
        let uninstallation = Uninstallation::new(server, &options.namespace, &options.daemon_set);
        let patience = Duration::from_secs(options.timeout);
        Ok(uninstallation.run(patience, logging::complain).await?)
    })
}
