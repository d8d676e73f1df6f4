//! Metrics and health of the controller: what it issued and refused, and until when it can issue.

use std::sync::Arc;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};
use sluice_controller::{Placement, Standing};
use sluice_tls::{Clock, UnixTime};

use super::{
    Export, encode, encode_log,
    node::{gauges, seconds},
};

/// The parts of a controller that metrics are gathered from.
#[derive(Clone)]
pub(crate) struct AuthorityExporter {
    pub(crate) standing: Arc<Standing>,
    pub(crate) placement: Arc<dyn Placement>,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Export for AuthorityExporter {
    fn text(&self) -> Result<String, std::fmt::Error> {
        encode(Gathered(self.clone()))
    }

    fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        match self.standing.authority_ends() {
            None => missing.push("the CA is not open yet".to_owned()),
            Some(ends) if ends <= self.clock.now() => {
                missing.push("the CA's own certificate has expired: renew it".to_owned());
            }
            Some(_) => {}
        }
        if !self.placement.is_known() {
            missing.push("it is not known yet which pods run where".to_owned());
        }
        missing
    }
}

/// Gathers the metrics when they are asked for.
struct Gathered(AuthorityExporter);

impl std::fmt::Debug for Gathered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gathered").finish_non_exhaustive()
    }
}

impl Collector for Gathered {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let standing = &self.0.standing;
        let build = vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1)];
        gauges(&mut encoder, "sluice_build", "The controller's version", build)?;
        encode_log(&mut encoder)?;
        let help = "Certificates issued";
        let issued =
            encoder.encode_descriptor("sluice_ca_issued", help, None, MetricType::Counter)?;
        ConstCounter::new(standing.issued()).encode(issued)?;
        let help = "Requests refused, by the rule that they broke";
        let kind = MetricType::Counter;
        let mut refused = encoder.encode_descriptor("sluice_ca_refused", help, None, kind)?;
        for (rule, count) in standing.refused() {
            ConstCounter::new(count).encode(refused.encode_family(&[("rule", rule)])?)?;
        }
        let ends = |at: Option<UnixTime>| at.map(|at| (vec![], seconds(at.as_secs())));
        let help = "When the CA's own certificate expires, in seconds since 1970";
        let rows = ends(standing.authority_ends()).into_iter().collect();
        gauges(&mut encoder, "sluice_ca_expiration_timestamp_seconds", help, rows)?;
        let help = "When the certificate that the controller shows expires, in seconds since 1970";
        let rows = ends(standing.server_ends()).into_iter().collect();
        gauges(&mut encoder, "sluice_ca_server_expiration_timestamp_seconds", help, rows)
    }
}
