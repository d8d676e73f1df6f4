//! Metrics and health over HTTP: `/metrics` in `OpenMetrics` text, `/healthz/live`, `/healthz/ready`.
//!
//! Everything is gathered when it is asked for, from the parts that know it; between two scrapes nothing is
//! done for metrics except that a connection adds to its series when it is opened and when it ends.

mod connections;
mod health;
mod node;
mod server;

use std::sync::Arc;

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Registry};
use sluice_proxy::Shared;

pub(crate) use self::server::{bind, serve};
use self::{connections::encode_connections, node::encode_node};
use crate::view::server::Answers;

/// The parts that know.
pub(crate) struct Exporter {
    pub(crate) shared: Arc<Shared>,
    pub(crate) answers: Arc<dyn Answers>,
}

impl Exporter {
    /// Everything in `OpenMetrics` text.
    fn text(self: &Arc<Self>) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Gathered(Arc::clone(self))));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// What is encoded when it is asked for.
struct Gathered(Arc<Exporter>);

impl std::fmt::Debug for Gathered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gathered").finish_non_exhaustive()
    }
}

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        encode_connections(&mut encoder, &self.0.shared)?;
        encode_node(&mut encoder, &self.0)
    }
}
