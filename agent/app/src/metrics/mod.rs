//! Metrics and health over HTTP: `/metrics` in `OpenMetrics` text, `/healthz/live`, `/healthz/ready`.
//!
//! Everything is gathered on each scrape from the parts that know it. Between scrapes nothing is done for metrics,
//! except that a connection adds to its series when it is opened and when it ends.

mod authority;
mod connections;
mod health;
mod node;
mod server;

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
    registry::Registry,
};
use sluice_proxy::Shared;

pub(crate) use self::{
    authority::AuthorityExporter,
    server::{bind, serve},
};
use self::{connections::encode_connections, node::encode_node};
use crate::{logging, view::server::Answers};

/// A source of metrics and readiness.
pub(crate) trait Export: Send + Sync {
    /// Returns all metrics as `OpenMetrics` text.
    fn text(&self) -> Result<String, std::fmt::Error>;

    /// Returns what is still missing before the program is ready; nothing once it is.
    fn missing(&self) -> Vec<String>;
}

/// The parts of an agent that metrics are gathered from.
#[derive(Clone)]
pub(crate) struct Exporter {
    pub(crate) shared: Arc<Shared>,
    pub(crate) answers: Arc<dyn Answers>,
    /// What the DNS names of services end in, after `svc`.
    pub(crate) cluster_domain: Arc<str>,
}

impl Export for Exporter {
    fn text(&self) -> Result<String, std::fmt::Error> {
        encode(Gathered(self.clone()))
    }

    fn missing(&self) -> Vec<String> {
        self.missing()
    }
}

fn encode(collector: impl Collector) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

fn encode_log(encoder: &mut DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
    let help = "Lines that are missing in the log, because nobody took them";
    let (name, kind) = ("sluice_log_lines_dropped", MetricType::Counter);
    let family = encoder.encode_descriptor(name, help, None, kind)?;
    ConstCounter::new(logging::dropped()).encode(family)
}

/// What is encoded when it is asked for.
struct Gathered(Exporter);

impl std::fmt::Debug for Gathered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gathered").finish_non_exhaustive()
    }
}

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        encode_connections(&mut encoder, &self.0)?;
        encode_log(&mut encoder)?;
        encode_node(&mut encoder, &self.0)
    }
}
