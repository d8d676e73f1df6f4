//! `sluice status` and `sluice flows`.

use serde::de::DeserializeOwned;

use super::{
    client,
    model::{Flow, Status},
    table::{Table, bytes},
};
use crate::{
    args::{Output, ViewOptions},
    logging::print,
};

/// Prints pods, certificates, policies and what is wrong with the state of the mesh.
pub(crate) fn status(options: &ViewOptions) -> anyhow::Result<()> {
    show(options, "/status", status_text)
}

/// Prints the open connections.
pub(crate) fn flows(options: &ViewOptions) -> anyhow::Result<()> {
    show(options, "/flows", |flows: &Vec<Flow>| flows_text(flows))
}

fn show<T: DeserializeOwned>(
    options: &ViewOptions,
    path: &str,
    text: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    let body = client::ask(&options.socket, path)?;
    match options.output {
        Output::Json => {
            let value: serde_json::Value = serde_json::from_slice(&body)?;
            print(&format!("{}\n", serde_json::to_string_pretty(&value)?))
        }
        Output::Table => print(&text(&serde_json::from_slice(&body)?)),
    }
}

fn status_text(status: &Status) -> String {
    let mut text = format!(
        "sluice {}  node {}  trust domain {}  up {} s  {} open connections\n",
        status.version,
        status.node,
        status.trust_domain,
        status.uptime_seconds,
        status.open_connections
    );
    text += &source_text(status);
    text += "\nPODS\n";
    text += &pods_text(status);
    text += "\nCERTIFICATES\n";
    text += &certificates_text(status);
    text += "\nPOLICIES\n";
    text += &policies_text(status);
    text
}

fn source_text(status: &Status) -> String {
    let source = &status.source;
    let known = match source.age_seconds {
        Some(age) => format!("state {} of the mesh, {age} s old", source.version),
        None => "nothing is known of the mesh yet".to_owned(),
    };
    let peers = &status.peers;
    let mut lines =
        vec![format!("{known}; {} of {} protected addresses", peers.known, peers.capacity)];
    if peers.capture_all {
        lines.push(
            "WARNING: the table of protected addresses overflowed, so every destination is captured".to_owned(),
        );
    }
    lines.extend(source.errors.iter().map(|error| format!("ERROR: {error}")));
    lines.push(String::new());
    lines.join("\n")
}

fn pods_text(status: &Status) -> String {
    let mut table = Table::new(&[
        "NAMESPACE",
        "NAME",
        "STATE",
        "MTLS OUT",
        "MTLS IN",
        "PLAIN OUT",
        "PLAIN IN",
        "DIRECT",
        "REFUSED",
        "GUARD DROPS",
        "ERRORS",
    ]);
    for pod in &status.pods {
        let counters = &pod.counters;
        let refused = counters.denied
            + counters.outbound_refused
            + counters.inbound_refused
            + counters.inbound_dropped;
        let state = pod
            .reason
            .as_ref()
            .map_or_else(|| pod.state.clone(), |reason| format!("{}: {reason}", pod.state));
        table.row(vec![
            pod.namespace.clone(),
            pod.name.clone(),
            state,
            counters.outbound_mtls.to_string(),
            counters.inbound_mtls.to_string(),
            counters.outbound_plaintext.to_string(),
            counters.inbound_plaintext.to_string(),
            counters.direct.to_string(),
            refused.to_string(),
            counters.guard_drops.to_string(),
            counters.errors.to_string(),
        ]);
    }
    table.render("no pod of this node is in the mesh: label one istio.io/dataplane-mode=ambient")
}

fn certificates_text(status: &Status) -> String {
    let mut table = Table::new(&["IDENTITY", "EXPIRES", "NEXT RENEWAL", "ISSUER", "LAST ERROR"]);
    for certificate in &status.certificates {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        table.row(vec![
            certificate.identity.clone(),
            shown(&certificate.not_after),
            shown(&certificate.next_renewal),
            shown(&certificate.issuer),
            shown(&certificate.last_error),
        ]);
    }
    table.render("none")
}

fn policies_text(status: &Status) -> String {
    let mut table = Table::new(&["KIND", "NAMESPACE", "NAME", "FINDINGS"]);
    for policy in &status.policies {
        let findings =
            if policy.findings.is_empty() { "-".to_owned() } else { policy.findings.join("; ") };
        table.row(vec![
            policy.kind.clone(),
            policy.namespace.clone(),
            policy.name.clone(),
            findings,
        ]);
    }
    table.render("none: every connection is allowed, mutual TLS is PERMISSIVE")
}

fn flows_text(flows: &[Flow]) -> String {
    let mut table = Table::new(&[
        "DIRECTION",
        "TRANSPORT",
        "SOURCE",
        "SOURCE IDENTITY",
        "DESTINATION",
        "DESTINATION IDENTITY",
        "SENT",
        "RECEIVED",
        "AGE",
    ]);
    for flow in flows {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        table.row(vec![
            flow.direction.clone(),
            flow.transport.clone(),
            flow.source.clone(),
            shown(&flow.source_identity),
            flow.destination.clone(),
            shown(&flow.destination_identity),
            bytes(flow.bytes_sent),
            bytes(flow.bytes_received),
            format!("{:.1} s", flow.age_seconds),
        ]);
    }
    table.render("no open connections")
}
