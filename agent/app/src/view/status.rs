//! `sluice status`.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Shown, View, certs,
    model::{Capture, Certificate, Pod, Status, Unattributed},
    policies,
    table::Table,
};

impl View for Status {
    const COMMAND: &'static str = "status";
    const PATH: &'static str = "/status";

    fn troubles(&self) -> Vec<String> {
        let mut troubles = self.source_troubles();
        troubles.extend(self.pods.iter().filter_map(Pod::trouble));
        troubles.extend(self.certificates.iter().filter_map(Certificate::trouble));
        troubles.extend(policies::refused(&self.policies));
        troubles
    }

    fn text(all: &Shown<'_, Self>) -> String {
        let head = match all.answers.as_slice() {
            [(_, only)] if !all.is_merged => header(only),
            many => nodes(many),
        };
        let certificates =
            all.answers.iter().map(|(node, one)| (*node, one.certificates.as_slice()));
        let policies = all.answers.iter().map(|(node, one)| (*node, one.policies.as_slice()));
        format!(
            "{head}\nPODS\n{}\nCERTIFICATES\n{}\nPOLICIES\n{}",
            pods(all),
            certs::table(all.is_merged, certificates, "none"),
            policies::table(all.is_merged, policies),
        )
    }
}

impl Status {
    /// Returns what is wrong with the node's knowledge of the mesh.
    pub(crate) fn source_troubles(&self) -> Vec<String> {
        let source = &self.source;
        let mut troubles = Vec::new();
        if source.version == 0 {
            troubles.push("nothing is known of the mesh yet".to_owned());
        }
        if source.is_provisional {
            troubles.push(
                "what is in force is what was remembered from before a restart: the API server does not answer"
                    .to_owned(),
            );
        }
        if source.is_leaving {
            troubles.push("Sluice is being uninstalled: every pod leaves the mesh".to_owned());
        }
        if self.peers.capture_all {
            let text =
                "the table of protected addresses overflowed, so every destination is captured";
            troubles.push(text.to_owned());
        }
        troubles.extend(source.errors.iter().cloned());
        troubles
    }
}

impl Pod {
    /// Returns why the pod is not wholly captured; `None` if it is.
    pub(crate) fn trouble(&self) -> Option<String> {
        if self.state == Capture::Captured {
            return None;
        }
        let Self { namespace, name, state, reason, .. } = self;
        let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        Some(format!("the pod {namespace}/{name} is {state}{reason}"))
    }
}

impl Certificate {
    /// Returns what is wrong if the certificate has expired or never came.
    pub(crate) fn trouble(&self) -> Option<String> {
        let because = self.last_error.as_ref().map(|error| format!(": {error}"));
        let Some(not_after) = &self.not_after else {
            return because.map(|because| format!("{} has no certificate{because}", self.identity));
        };
        let is_over = moment(not_after).is_some_and(|end| end < OffsetDateTime::now_utc());
        let because = because.unwrap_or_default();
        is_over.then(|| format!("the certificate of {} has expired{because}", self.identity))
    }
}

/// Parses a moment as agents write it.
pub(crate) fn moment(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &Rfc3339).ok()
}

fn header(status: &Status) -> String {
    let Status { version, node, trust_domain, uptime_seconds, open_connections, .. } = status;
    let peers = &status.peers;
    format!(
        "sluice {version}  node {node}  trust domain {trust_domain}  up {uptime_seconds} s  {open_connections} open \
         connections\n{}; {} of {} protected addresses\n{}",
        known(status),
        peers.known,
        peers.capacity,
        status.unattributed.map(unattributed).unwrap_or_default()
    )
}

/// A line that nobody needs while nothing was dropped.
fn unattributed(counts: Unattributed) -> String {
    match counts {
        Unattributed { inbound_dropped: 0, guard_drops: 0 } => String::new(),
        Unattributed { inbound_dropped, guard_drops } => format!(
            "dropped in the pods' namespaces: {inbound_dropped} requests to connect to an address that no pod has \
             in the mesh, {guard_drops} packets from an unknown interface\n"
        ),
    }
}

fn known(status: &Status) -> String {
    match status.source.age_seconds {
        Some(age) => format!("state {} of the mesh, {age} s old", status.source.version),
        None => "nothing is known of the mesh yet".to_owned(),
    }
}

fn nodes(all: &[(&str, &Status)]) -> String {
    let mut table = Table::of_nodes(
        true,
        &["VERSION", "UP", "STATE OF THE MESH", "PODS", "CAPTURED", "CONNECTIONS"],
    );
    for (node, status) in all {
        let captured = status.pods.iter().filter(|pod| pod.state == Capture::Captured).count();
        let cells = vec![
            status.version.clone(),
            format!("{} s", status.uptime_seconds),
            known(status),
            status.pods.len().to_string(),
            captured.to_string(),
            status.open_connections.to_string(),
        ];
        table.row_of(node, cells);
    }
    let dropped = all.iter().filter_map(|(node, status)| {
        let line = unattributed(status.unattributed?);
        (!line.is_empty()).then(|| format!("{node}: {line}"))
    });
    table.render("no agent has answered") + &dropped.collect::<String>()
}

fn pods(all: &Shown<'_, Status>) -> String {
    let mut table = Table::of_nodes(
        all.is_merged,
        &[
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
        ],
    );
    for (node, status) in &all.answers {
        for pod in &status.pods {
            table.row_of(node, pod_cells(pod));
        }
    }
    table.render("no pod is in the mesh: `kubectl label namespace NAME istio.io/dataplane-mode=ambient` brings one in")
}

fn pod_cells(pod: &Pod) -> Vec<String> {
    let counters = &pod.counters;
    let refused = counters.denied
        + counters.outbound_refused
        + counters.inbound_refused
        + counters.inbound_dropped;
    let state = pod
        .reason
        .as_ref()
        .map_or_else(|| pod.state.to_string(), |reason| format!("{}: {reason}", pod.state));
    vec![
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
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(unattributed: Option<Unattributed>) -> Status {
        serde_json::from_value(json!({
            "version": "1", "node": "n", "instance": "n", "trust_domain": "td", "uptime_seconds": 1,
            "open_connections": 0, "source": { "version": 1, "errors": [] },
            "peers": { "known": 0, "capacity": 1, "capture_all": false },
            "unattributed": unattributed, "pods": [], "certificates": [], "policies": [],
        }))
        .expect("a status")
    }

    #[test]
    fn drops_for_no_pod_are_shown_with_their_node_and_only_if_there_are_any() {
        let drops = |inbound_dropped| Some(Unattributed { inbound_dropped, guard_drops: 0 });
        let (some, none, unknown) = (status(drops(3)), status(drops(0)), status(None));
        let text = nodes(&[("one", &some), ("two", &none), ("three", &unknown)]);
        assert_eq!(text.matches("dropped").count(), 1, "{text}");
        assert!(text.contains("\none: dropped in the pods' namespaces: 3 requests"), "{text}");
    }
}
