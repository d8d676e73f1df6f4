//! Where others ask the agent: the operator's and the plugin's sockets, metrics and health. These fronts belong to the
//! agent that serves the node.

use std::{path::PathBuf, sync::Arc, time::Duration};

use sluice_proxy::Shared;
use sluice_source::AgentConfig;
use tokio::{task::AbortHandle, time::Instant};

use super::operator::Operator;
use crate::{
    cni,
    metrics::{self, Exporter},
    view::server,
};

/// How long the previous agent may keep the metrics port.
const PORT: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// The addresses of the fronts, and what answers there.
pub(super) struct Fronts {
    pub(super) socket: PathBuf,
    pub(super) cni_socket: PathBuf,
    pub(super) metrics: Option<std::net::SocketAddr>,
    pub(super) cluster_domain: Arc<str>,
    pub(super) shared: Arc<Shared>,
    pub(super) operator: Arc<Operator>,
    pub(super) desk: Arc<cni::Desk>,
}

/// Open fronts; they close when this is dropped.
#[derive(Default)]
pub(super) struct Open(Vec<AbortHandle>);

// === impl Fronts ===

impl Fronts {
    pub(super) fn new(
        config: &AgentConfig,
        shared: &Arc<Shared>,
        operator: Arc<Operator>,
        desk: cni::Desk,
    ) -> Self {
        Self {
            socket: config.socket.clone(),
            cni_socket: config.cni_socket.clone(),
            metrics: config.metrics,
            cluster_domain: config.source.cluster_domain().into(),
            shared: Arc::clone(shared),
            operator,
            desk: Arc::new(desk),
        }
    }

    /// Opens all fronts.
    pub(super) async fn open(&self) -> anyhow::Result<Open> {
        let mut open = Open::default();
        let listener = server::bind(&self.socket)?;
        open.keep(server::serve(listener, Arc::clone(&self.operator) as _));
        if let Some(address) = self.metrics {
            let until = Instant::now() + PORT;
            let listener = loop {
                match metrics::bind(address) {
                    Ok(listener) => break listener,
                    Err(error) if Instant::now() >= until => return Err(error),
                    Err(_) => tokio::time::sleep(PAUSE).await,
                }
            };
            let answers = Arc::clone(&self.operator) as _;
            let exporter = Exporter {
                shared: Arc::clone(&self.shared),
                answers,
                cluster_domain: Arc::clone(&self.cluster_domain),
            };
            open.keep(metrics::serve(listener, Arc::new(exporter)));
        }
        let listener = server::bind(&self.cni_socket)?;
        open.keep(cni::serve(listener, Arc::clone(&self.desk)));
        Ok(open)
    }
}

// === impl Open ===

impl Open {
    fn keep(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(tokio::spawn(task).abort_handle());
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}
