//! Istio's TCP metrics, with the labels that its dashboards ask for.

use std::collections::HashMap;

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};
use sluice_proxy::{Direction, End, Labels, Sums, Transport};

use super::Exporter;

type Pairs = Vec<(&'static str, String)>;

/// Name, help text, and which of the sums it shows.
type Column = (&'static str, &'static str, fn(&Sums) -> u64);

const COLUMNS: [Column; 4] = [
    ("istio_tcp_connections_opened", "Connections opened", |sums| sums.opened),
    ("istio_tcp_connections_closed", "Connections closed", |sums| sums.closed),
    ("istio_tcp_sent_bytes", "Bytes from client to server", |sums| sums.sent),
    ("istio_tcp_received_bytes", "Bytes from server to client", |sums| sums.received),
];

pub(super) fn encode_connections(
    encoder: &mut DescriptorEncoder<'_>,
    exporter: &Exporter,
) -> Result<(), std::fmt::Error> {
    let shared = &exporter.shared;
    let series = shared.series.all(&shared.live.all());
    // Each pod of a Deployment has a series of its own, but their labels are equal.
    let mut rows: HashMap<(&Labels, &'static str), Sums> = HashMap::new();
    for one in &series {
        for sums in one.sums() {
            let row = rows.entry((&one.labels, sums.flags.as_str())).or_default();
            row.opened += sums.opened;
            row.closed += sums.closed;
            row.sent += sums.sent;
            row.received += sums.received;
        }
    }
    let rows: Vec<(Pairs, Sums)> = rows
        .into_iter()
        .map(|((labels, flags), sums)| (pairs(labels, flags, &exporter.cluster_domain), sums))
        .collect();
    for (name, help, column) in COLUMNS {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (pairs, sums) in &rows {
            // Everything is opened under one flag; the others have no opened connections to show.
            if name == "istio_tcp_connections_opened" && sums.opened == 0 {
                continue;
            }
            ConstCounter::new(column(sums)).encode(family.encode_family(pairs)?)?;
        }
    }
    Ok(())
}

fn pairs(labels: &Labels, flags: &'static str, cluster_domain: &str) -> Pairs {
    let (namespace, service) =
        labels.service.clone().unwrap_or_else(|| ("unknown".to_owned(), "unknown".to_owned()));
    let host = match &labels.service {
        Some((namespace, name)) => format!("{name}.{namespace}.svc.{cluster_domain}"),
        None => "unknown".to_owned(),
    };
    let mut pairs: Pairs = vec![
        ("reporter", reporter(labels.reporter).to_owned()),
        ("request_protocol", "tcp".to_owned()),
        ("response_flags", flags.to_owned()),
        ("connection_security_policy", security(labels.transport).to_owned()),
        ("destination_service", host),
        ("destination_service_namespace", namespace),
        ("destination_service_name", service),
    ];
    let names = |end: &End| {
        [
            end.workload.clone(),
            end.namespace.clone(),
            end.principal.clone(),
            end.app.clone(),
            end.version.clone(),
            end.canonical_service.clone(),
            end.canonical_revision.clone(),
        ]
    };
    pairs.extend(SOURCE.into_iter().zip(names(&labels.source)));
    pairs.extend(DESTINATION.into_iter().zip(names(&labels.destination)));
    pairs
}

const SOURCE: [&str; 7] = [
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
];
const DESTINATION: [&str; 7] = [
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
];

fn reporter(direction: Direction) -> &'static str {
    match direction {
        Direction::Outbound => "source",
        Direction::Inbound => "destination",
    }
}

fn security(transport: Transport) -> &'static str {
    match transport {
        // Within one agent the handshake proves the same; there is just no wire.
        Transport::MutualTls | Transport::Local => "mutual_tls",
        Transport::Plaintext => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(name: &str) -> End {
        let text = || name.to_owned();
        End {
            workload: text(),
            namespace: text(),
            principal: text(),
            app: text(),
            version: text(),
            canonical_service: text(),
            canonical_revision: text(),
        }
    }

    #[test]
    fn a_service_has_the_host_name_of_its_cluster() {
        let mut labels = Labels {
            reporter: Direction::Outbound,
            transport: Transport::MutualTls,
            source: end("client"),
            destination: end("server"),
            service: Some(("shop".to_owned(), "web".to_owned())),
        };
        let host = |labels: &Labels| {
            let pairs = pairs(labels, "-", "corp.example");
            pairs.into_iter().find(|(name, _)| *name == "destination_service").unwrap().1
        };
        assert_eq!(host(&labels), "web.shop.svc.corp.example");
        labels.service = None;
        assert_eq!(host(&labels), "unknown");
    }
}
