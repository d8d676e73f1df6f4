//! Judges a whole cluster by what every node says and what the API server knows.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use serde::Deserialize;
use sluice_kube::{AGENTS_NEED, AgentPod, AskError, OPERATORS_NEED, Operator, Ran, Right, apart};

use super::{Line, NodeReport};
use crate::{
    args::ViewOptions,
    view::fleet::{Fleet, Trouble, unreadable},
};

/// Clocks that differ by more than this, in seconds, are worth setting right.
const SKEW: f64 = 2.0;
/// The difference, in seconds, beyond which peers may refuse fresh certificates, which are valid from a minute before
/// they are issued.
const SKEW_THAT_HARMS: f64 = 30.0;
/// The container that keeps the plugin installed, and the command to run in it.
const CNI: &str = "cni";
const CNI_LOOK: [&str; 2] = ["/usr/local/bin/sluice-cni", "look"];

/// Carries out all checks of a cluster.
pub(super) async fn look(operator: Operator, options: &ViewOptions) -> anyhow::Result<Vec<Line>> {
    // Without the API server nothing else can be checked.
    let mut lines = server(&operator).await?;
    lines.push(rights(operator.lacks(&OPERATORS_NEED).await, operator.namespace()));
    let fleet = match Fleet::find(operator, options).await {
        Ok(fleet) => fleet,
        // Then Sluice's other parts are missing too, or may not be looked at.
        Err(error) => {
            lines.push(Line::unanswered("agents", format!("{error:#}")));
            return Ok(lines);
        }
    };
    lines.push(kinds(fleet.operator()).await);
    lines.push(controllers(fleet.operator()).await);
    lines.extend(agents_rights(&fleet).await);
    let asked = fleet.run("check").await;
    let mut versions = BTreeMap::new();
    let mut said = Vec::new();
    for (agent, outcome) in asked {
        if let Some(outcome) = outcome {
            said.extend(node(&agent, outcome, &mut versions));
        }
    }
    said.extend(cni(&fleet).await);
    let count = fleet.agents().len();
    let troubles = fleet.troubles();
    if troubles.is_empty() {
        lines.push(Line::ok("agents", format!("{count} ready, as many as there should be")));
    }
    lines.extend(troubles.into_iter().map(from_trouble));
    lines.extend(same_versions(&versions));
    lines.extend(merged(said));
    Ok(lines)
}

async fn server(operator: &Operator) -> Result<Vec<Line>, AskError> {
    let facts = operator.server_facts().await?;
    let says = format!("{} answers: Kubernetes {}", operator.server(), facts.version);
    let clock = facts.ahead.map(|ahead| clock("the API server", ahead));
    Ok([Some(Line::ok("server", says)), clock].into_iter().flatten().collect())
}

fn clock(whose: &str, ahead: f64) -> Line {
    let off = ahead.abs();
    let direction = if ahead > 0.0 { "ahead of" } else { "behind" };
    let advice =
        "have both follow the same time (NTP): certificates are judged by each node's clock";
    if off <= SKEW {
        return Line::ok("clock", format!("{whose} agrees with this machine"));
    }
    let says = format!("{whose} is {off:.0} s {direction} this machine");
    if off > SKEW_THAT_HARMS {
        Line::fail("clock", says, advice)
    } else {
        Line::warn("clock", says, advice)
    }
}

fn rights(lacks: Result<Vec<Right>, AskError>, namespace: &str) -> Line {
    match lacks {
        Ok(lacks) if lacks.is_empty() => Line::ok(
            "permissions",
            format!("all that the operator's commands ask for in {namespace}"),
        ),
        Ok(lacks) => {
            let advice = "have an administrator bind you the Role that the chart made for operators (`kubectl get role \
                          -A -l app.kubernetes.io/component=operator`)";
            let says = format!("you may not {} in {namespace}", listed(&lacks));
            Line { unanswered: true, ..Line::fail("permissions", says, advice) }
        }
        Err(error) => Line::unanswered("permissions", error.to_string()),
    }
}

fn listed(rights: &[Right]) -> String {
    rights.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

async fn agents_rights(fleet: &Fleet) -> Vec<Line> {
    let accounts: BTreeSet<&str> =
        fleet.agents().iter().map(|agent| agent.account.as_str()).collect();
    let mut lines = Vec::new();
    for account in accounts {
        lines.push(match fleet.operator().account_lacks(account, &AGENTS_NEED).await {
            Ok(lacks) if lacks.is_empty() => {
                Line::ok("permissions", format!("all that the agents ask for ({account})"))
            }
            Ok(lacks) => Line::fail(
                "permissions",
                format!("the agents' service account {account} may not {}", listed(&lacks)),
                "`helm upgrade` puts the chart's ClusterRole back",
            ),
            Err(AskError::Forbidden { .. }) => Line::warn(
                "permissions",
                format!("those of the agents ({account}) are not known: you may not ask for them"),
                "nothing has to be done; an administrator may `create subjectaccessreviews.authorization.k8s.io`",
            ),
            Err(error) => Line::unanswered("permissions", error.to_string()),
        });
    }
    lines
}

async fn kinds(operator: &Operator) -> Line {
    let kinds = ["authorizationpolicies", "peerauthentications"];
    match operator.missing_kinds("security.istio.io", &["v1", "v1beta1"], &kinds).await {
        Ok(missing) if missing.is_empty() => {
            Line::ok("CRDs", "AuthorizationPolicy and PeerAuthentication are there")
        }
        Ok(missing) => Line::fail(
            "CRDs",
            format!("missing: {}; no policy can be written", missing.join(", ")),
            "`kubectl apply -f deploy/helm/sluice/crds`: helm installs them only with the first `helm install`",
        ),
        Err(error) => Line::unanswered("CRDs", error.to_string()),
    }
}

async fn controllers(operator: &Operator) -> Line {
    let advice = format!(
        "see `kubectl -n {0} describe deployment sluice-controller` and `kubectl -n {0} logs \
         deployment/sluice-controller`",
        operator.namespace()
    );
    match operator.controllers().await {
        Ok(None) => Line::ok("controller", "there is none: another CA issues certificates"),
        Ok(Some(found)) => {
            let says = format!("{} of {} replicas ready", found.ready, found.wanted);
            if found.ready >= found.wanted {
                Line::ok("controller", says)
            } else if found.ready > 0 {
                Line::warn("controller", says, advice)
            } else {
                Line::fail(
                    "controller",
                    format!("{says}: no certificate is issued or renewed"),
                    advice,
                )
            }
        }
        Err(error) => Line::unanswered("controller", error.to_string()),
    }
}

/// Returns what one node's agent says, with a line about the node's clock.
fn node(
    agent: &AgentPod,
    outcome: Result<Ran, AskError>,
    versions: &mut BTreeMap<String, Vec<String>>,
) -> Vec<Line> {
    let unanswered = |error: String| vec![Line::unanswered("agents", error).of_node(&agent.node)];
    let ran = match outcome {
        Ok(ran) => ran,
        Err(error) => return unanswered(words(&error)),
    };
    let report: NodeReport = match serde_json::from_str(&ran.output) {
        Ok(report) => report,
        Err(error) => return unanswered(unreadable(&ran, "check", &error)),
    };
    versions.entry(report.version).or_default().push(agent.node.clone());
    let (asked, answered) = ran.between;
    let theirs = Duration::from_millis(report.now_ms).as_secs_f64();
    let ahead = apart((theirs, theirs), (since_epoch(asked), since_epoch(answered)));
    let lines = report.lines.into_iter().chain([clock("the node", ahead)]);
    lines.map(|line| line.of_node(&agent.node)).collect()
}

/// Describes an error. A missing permission is described without the pod's name, because it concerns all pods alike.
fn words(error: &AskError) -> String {
    if let AskError::Forbidden { needs, .. } = error {
        format!("not permitted to ask: it needs {needs}")
    } else {
        error.to_string()
    }
}

fn since_epoch(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// What `sluice-cni look` prints.
#[derive(Deserialize)]
struct Plugin {
    file: Option<String>,
    main: Option<String>,
    entered: bool,
    binary: bool,
}

async fn cni(fleet: &Fleet) -> Vec<Line> {
    let (with, without): (Vec<AgentPod>, Vec<AgentPod>) =
        fleet.agents().iter().cloned().partition(|agent| agent.has_cni);
    let mut lines: Vec<Line> = without
        .iter()
        .map(|agent| {
            let says = "the plugin is switched off: pods are captured a moment after their start";
            Line::warn("CNI", says, "set cni.enabled=true in the chart's values")
                .of_node(&agent.node)
        })
        .collect();
    let outcomes = fleet.operator().run(&with, CNI, &CNI_LOOK).await;
    for (agent, outcome) in with.iter().zip(outcomes) {
        let line = match outcome {
            Err(error) => Line::unanswered("CNI", words(&error)),
            Ok(ran) => {
                if let Ok(found) = serde_json::from_str(&ran.output) {
                    entered(&found, fleet.operator().namespace(), &agent.name)
                } else {
                    let words = ran.errors.lines().next().unwrap_or("it says nothing").to_owned();
                    Line::unanswered("CNI", format!("`sluice-cni look` failed there: {words}"))
                }
            }
        };
        lines.push(line.of_node(&agent.node));
    }
    lines
}

fn entered(found: &Plugin, namespace: &str, pod: &str) -> Line {
    let advice = format!("see `kubectl -n {namespace} logs {pod} -c cni`");
    match (&found.file, &found.main) {
        (Some(file), Some(main)) if found.entered && found.binary => {
            Line::ok("CNI", format!("chained in {file} after {main}"))
        }
        (Some(file), _) if !found.entered => Line::fail(
            "CNI",
            format!("no entry in {file}: pods start before they are captured"),
            advice,
        ),
        (Some(_), _) => Line::fail("CNI", "the plugin's program is not on the node", advice),
        (None, _) => {
            let says = "there is no network list where cni.confDir says: no main plugin is installed, or the runtime \
                        reads another directory";
            Line::fail("CNI", says, advice)
        }
    }
}

fn from_trouble(Trouble { node, unanswered, what }: Trouble) -> Line {
    let line = Line { unanswered, ..Line::unanswered("agents", what) };
    match node {
        Some(node) => line.of_node(&node),
        None => line,
    }
}

fn same_versions(versions: &BTreeMap<String, Vec<String>>) -> Option<Line> {
    let ours = env!("CARGO_PKG_VERSION");
    let mut known = versions.iter();
    match (known.next(), known.next()) {
        (None, _) => None,
        (Some((only, _)), None) if only == ours => {
            Some(Line::ok("versions", format!("every agent is of {only}, as this program")))
        }
        (Some((only, _)), None) => Some(Line::warn(
            "versions",
            format!("every agent is of {only}, this program of {ours}"),
            "use the `sluice` of the agents' version",
        )),
        _ => {
            let all: Vec<String> = versions
                .iter()
                .map(|(version, nodes)| format!("{version} on {}", super::some_of(nodes)))
                .collect();
            Some(Line::warn(
                "versions",
                format!("agents differ: {}", all.join("; ")),
                "see whether the upgrade goes on: `kubectl rollout status daemonset/sluice-agent`",
            ))
        }
    }
}

/// Merges equal lines of several nodes into one.
fn merged(said: Vec<Line>) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for mut line in said {
        let nodes = std::mem::take(&mut line.nodes);
        let same =
            lines.iter_mut().find(|known| Line { nodes: Vec::new(), ..(*known).clone() } == line);
        match same {
            Some(known) => known.nodes.extend(nodes),
            None => lines.push(Line { nodes, ..line }),
        }
    }
    lines.sort_by(|a, b| (&a.subject, b.result).cmp(&(&b.subject, a.result)));
    lines
}

#[cfg(test)]
mod tests {
    use super::{super::Mark, *};

    #[test]
    fn what_two_nodes_say_alike_is_said_once() {
        let said = vec![
            Line::ok("kernel", "Linux 6.1").of_node("n1"),
            Line::ok("pods", "3 captured").of_node("n1"),
            Line::ok("kernel", "Linux 6.1").of_node("n2"),
            Line::ok("pods", "4 captured").of_node("n2"),
        ];
        let lines = merged(said);
        let nodes: Vec<_> = lines.iter().map(|line| line.nodes.join(",")).collect();
        assert_eq!(nodes, ["n1,n2", "n1", "n2"]);
    }

    #[test]
    fn clocks_are_judged_by_what_they_harm() {
        let marks = [0.5, -1.9, 5.0, -31.0].map(|ahead| clock("n1", ahead).result);
        assert_eq!(marks, [Mark::Ok, Mark::Ok, Mark::Warn, Mark::Fail]);
        assert!(clock("n1", -31.0).says.contains("31 s behind"));
    }

    #[test]
    fn agents_of_different_versions_are_told_apart() {
        let ours = env!("CARGO_PKG_VERSION").to_owned();
        let mut versions = BTreeMap::from([(ours, vec!["n1".to_owned()])]);
        assert_eq!(same_versions(&versions).unwrap().result, Mark::Ok);
        versions.insert("9.9.9".to_owned(), vec!["n2".to_owned()]);
        let line = same_versions(&versions).unwrap();
        assert!(line.says.contains("9.9.9 on n2"), "{}", line.says);
    }
}
