//! Judges what one node's agent says.

use std::path::Path;

use serde::de::DeserializeOwned;
use time::OffsetDateTime;

use super::{Line, NodeReport, some_of};
use crate::view::{
    client,
    model::{Capture, Certs, NodeFacts, Pod, Policy, PolicyState, Status},
    status::moment,
};

/// The share of a certificate's life below which it gets a warning: renewal was due at half life.
const LEFT: f64 = 0.25;

/// Asks the agent behind this socket and judges its answers.
pub(super) async fn look(socket: &Path) -> anyhow::Result<NodeReport> {
    let node: NodeFacts = get(socket, "/node").await?;
    let status: Status = get(socket, "/status").await?;
    let certs: Certs = get(socket, "/certs").await?;
    let mut lines = kernel(&node);
    lines.extend(state(&status));
    lines.extend(pods(&status.pods));
    lines.extend(policies(&status.policies));
    lines.extend(certificates(&certs, OffsetDateTime::now_utc()));
    let NodeFacts { node, version, now_ms, .. } = node;
    Ok(NodeReport { node, version, now_ms, lines })
}

async fn get<T: DeserializeOwned>(socket: &Path, path: &str) -> anyhow::Result<T> {
    Ok(serde_json::from_slice(&client::get(socket, path).await?)?)
}

fn kernel(node: &NodeFacts) -> Vec<Line> {
    let btf = if node.btf { "BTF" } else { "no BTF" };
    let name = |hook: &String| {
        let name = hook.split(' ').next().unwrap_or_default();
        name.strip_prefix("sluice_").unwrap_or(name).to_owned()
    };
    let mut hooks: Vec<String> = node.hooks.iter().map(name).collect();
    hooks.sort();
    let (cgroup, hooks) = (&node.cgroup, hooks.join(", "));
    let says = format!("Linux {}, {btf}, cgroup v2 at {cgroup}; loaded: {hooks}", node.kernel);
    let mut lines = Vec::new();
    if node.hooks_missing.is_empty() {
        lines.push(Line::ok("kernel", says));
    } else {
        let missing = node.hooks_missing.join(", ");
        lines.push(Line::fail(
            "kernel",
            format!("not in effect, the kernel says: {missing} ({says})"),
            "another program may have detached them; they are put back within ten seconds: if this stays, see the agent's log",
        ));
    }
    lines.extend(node.kernel_lacks.iter().map(|lack| {
        let advice = "nothing has to be done; a newer kernel has it";
        Line::warn("kernel", format!("Linux {} lacks {lack}", node.kernel), advice)
    }));
    lines
}

fn state(status: &Status) -> Vec<Line> {
    let advice = "see the agent's log, and whether it reaches the API server (`sluice status`)";
    let mut lines: Vec<Line> = status
        .source_troubles()
        .into_iter()
        .map(|trouble| Line::fail("state", trouble, advice))
        .collect();
    if lines.is_empty() {
        lines.push(Line::ok("state", "the node follows the state of the mesh"));
    }
    let findings = status.source.findings.iter();
    lines.extend(
        findings.map(|said| Line::warn("objects", said.clone(), "change the object that it names")),
    );
    lines
}

fn pods(pods: &[Pod]) -> Vec<Line> {
    let mut lines: Vec<Line> = pods
        .iter()
        .filter_map(Pod::trouble)
        .map(|trouble| {
            Line::fail(
                "pods",
                trouble,
                "see the pod's events; `sluice status` says when it is better",
            )
        })
        .collect();
    let captured = pods.iter().filter(|pod| pod.state == Capture::Captured).count();
    let ran: Vec<String> = pods
        .iter()
        .filter(|pod| pod.ran_before_capture)
        .map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .collect();
    let late = match ran.len() {
        0 => String::new(),
        count => format!("; {count} ran before that: {}", some_of(&ran)),
    };
    let says = match pods.len() {
        0 => "none of this node is in the mesh".to_owned(),
        count => format!("{captured} of {count} pods of the mesh captured{late}"),
    };
    lines.push(Line::ok("pods", says));
    lines
}

fn policies(policies: &[Policy]) -> Vec<Line> {
    let mut lines = Vec::new();
    for Policy { kind, namespace, name, state, findings, .. } in policies {
        let says = format!("{kind} {namespace}/{name} is {state}: {}", findings.join("; "));
        match state {
            PolicyState::Refused => lines.push(Line::fail(
                "policies",
                says,
                "correct it; `sluice policy check FILE` says beforehand whether it will be accepted",
            )),
            PolicyState::Narrowed => lines.push(Line::warn(
                "policies",
                says,
                "nothing is let in by it that should not be; write it so that it says what is enforced",
            )),
            PolicyState::Unknown => lines.push(Line::warn(
                "policies",
                says,
                "the agent is newer than this program: use the `sluice` of the agents' version",
            )),
            PolicyState::Accepted => {}
        }
    }
    let whole = policies.len() - lines.len();
    lines.push(match policies.len() {
        0 => Line::ok("policies", "none: every connection is allowed, mutual TLS is PERMISSIVE"),
        _ => Line::ok("policies", format!("{whole} enforced as written")),
    });
    lines
}

fn certificates(certs: &Certs, now: OffsetDateTime) -> Vec<Line> {
    let mut lines = Vec::new();
    for certificate in &certs.certificates {
        let identity = &certificate.identity;
        let because =
            certificate.last_error.as_ref().map(|error| format!("; the last request: {error}"));
        let because = because.unwrap_or_default();
        let advice = advice(certificate.is_refused);
        let ends = certificate.not_after.as_deref().and_then(moment);
        let begins = certificate.not_before.as_deref().and_then(moment);
        let says = match (begins, ends) {
            (_, None) if because.is_empty() => continue,
            (_, None) => format!("{identity} has none{because}"),
            (_, Some(ends)) if ends <= now => format!("that of {identity} has expired{because}"),
            (Some(begins), Some(ends)) => {
                let left = (ends - now) / (ends - begins);
                if left >= LEFT {
                    continue;
                }
                let minutes = (ends - now).whole_minutes();
                let says = format!("that of {identity} ends in {minutes} minutes{because}");
                lines.push(Line::warn("certificates", says, advice));
                continue;
            }
            (None, Some(_)) => continue,
        };
        lines.push(Line::fail("certificates", says, advice));
    }
    lines.extend(certs.trust_warnings.iter().map(|warning| {
        Line::warn("trust", warning.clone(), "replace it before peers refuse what hangs on it")
    }));
    lines.extend(
        certs
            .faults
            .iter()
            .map(|fault| Line::fail("trust", fault.clone(), "correct the file that it names")),
    );
    if certs.trust.is_empty() {
        let advice = "see whether the agent reaches its CA";
        lines.push(Line::fail("trust", "no root is known, so nobody is believed", advice));
    }
    if lines.is_empty() {
        let says = match certs.certificates.len() {
            0 => "no pod of this node needs one yet".to_owned(),
            count => format!("{count} valid, each with at least a quarter of its life left"),
        };
        lines.push(Line::ok("certificates", says));
    }
    lines
}

/// Returns what to do about a certificate that is not issued or renewed.
fn advice(is_refused: bool) -> &'static str {
    if is_refused {
        "the CA's own log says why. istiod lets an agent ask for its node's pods only if CA_TRUSTED_NODE_ACCOUNTS \
         names the agents' service account and `ca.clusterId` is its own name of the cluster; SPIRE needs an entry for \
         the identity"
    } else {
        "see `sluice certs`, and whether the agent reaches its CA (`sluice check` of the controller)"
    }
}

#[cfg(test)]
mod tests {
    use time::format_description::well_known::Rfc3339;

    use super::{super::Mark, *};
    use crate::view::model::{Certificate, TrustEntry};

    fn certs(not_after: Option<&str>, last_error: Option<&str>) -> Certs {
        Certs {
            certificates: vec![Certificate {
                identity: "spiffe://a/b".to_owned(),
                issuer: None,
                serial: None,
                not_before: Some("2026-01-01T00:00:00Z".to_owned()),
                not_after: not_after.map(str::to_owned),
                next_renewal: None,
                last_error: last_error.map(str::to_owned),
                is_refused: last_error == Some("refused"),
            }],
            trust: vec![TrustEntry {
                kind: "root".to_owned(),
                of: "CN=a".to_owned(),
                serial: None,
                not_after: None,
            }],
            denied: 0,
            warnings: Vec::new(),
            trust_warnings: Vec::new(),
            faults: Vec::new(),
        }
    }

    #[test]
    fn a_certificate_is_warned_of_in_the_last_quarter_of_its_life() {
        let at = |text: &str| OffsetDateTime::parse(text, &Rfc3339).unwrap();
        let marks = |certs: &Certs, now: &str| -> Vec<Mark> {
            certificates(certs, at(now)).iter().map(|line| line.result).collect()
        };
        let day = certs(Some("2026-01-02T00:00:00Z"), Some("refused"));
        assert_eq!(marks(&day, "2026-01-01T17:59:00Z"), [Mark::Ok]);
        assert_eq!(marks(&day, "2026-01-01T18:01:00Z"), [Mark::Warn]);
        assert_eq!(marks(&day, "2026-01-02T00:00:01Z"), [Mark::Fail]);
        assert_eq!(marks(&certs(None, Some("refused")), "2026-01-01T00:00:00Z"), [Mark::Fail]);
        assert_eq!(marks(&certs(None, None), "2026-01-01T00:00:00Z"), [Mark::Ok]);
    }

    #[test]
    fn whoever_is_refused_is_sent_to_the_ca() {
        for (error, advice) in
            [("refused", "CA_TRUSTED_NODE_ACCOUNTS"), ("unreachable", "reaches its CA")]
        {
            let lines = certificates(&certs(None, Some(error)), OffsetDateTime::UNIX_EPOCH);
            let text = format!("{lines:?}");
            assert!(text.contains(error) && text.contains(advice), "{text}");
        }
    }

    #[test]
    fn a_refused_policy_fails_and_a_narrowed_one_warns() {
        let policy = |state: PolicyState| Policy {
            kind: "AuthorizationPolicy".to_owned(),
            namespace: "shop".to_owned(),
            name: state.to_string(),
            version: Some(1),
            state,
            findings: vec!["because".to_owned()],
        };
        let states = [PolicyState::Accepted, PolicyState::Narrowed, PolicyState::Refused];
        let lines = policies(&states.map(policy));
        let marks: Vec<Mark> = lines.iter().map(|line| line.result).collect();
        assert_eq!(marks, [Mark::Warn, Mark::Fail, Mark::Ok]);
        assert!(lines[1].says.contains("shop/refused is refused: because"), "{}", lines[1].says);
        assert_eq!(lines[2].says, "1 enforced as written");
    }
}
