//! Which agents there are, and in what state Kubernetes says they are.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Container, ContainerStatus, Pod},
};
use kube::{Api, ResourceExt, api::ListParams};

use super::{AskError, COMPONENT, OURS, Operator, makes, rights};

/// The agent's container in its pod.
const AGENT: &str = "agent";
/// The container that keeps the plugin installed.
const CNI: &str = "cni";

/// The pod of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentPod {
    /// Its node.
    pub node: String,
    /// Its name.
    pub name: String,
    /// Its state, as Kubernetes says.
    pub state: AgentState,
    /// Whether it keeps the CNI plugin installed.
    pub has_cni: bool,
    /// Its service account.
    pub account: String,
}

/// The state of an agent, as Kubernetes says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentState {
    /// It runs, and says that it can carry connections.
    Ready,
    /// It runs, and cannot carry connections (yet).
    NotReady(String),
    /// It does not run, so it cannot be asked.
    Down(String),
}

/// The agents of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roster {
    /// One agent for each node that has one, sorted by the node's name.
    pub agents: Vec<AgentPod>,
    /// How many nodes should have an agent, or why that is not known.
    pub wanted: Result<usize, AskError>,
}

impl Operator {
    /// Finds the agents.
    pub async fn roster(&self) -> Result<Roster, AskError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let selector = format!("{OURS},{COMPONENT}={AGENT}");
        let needs = rights::in_namespace("list pods", &self.namespace);
        let listed = pods.list(&ListParams::default().labels(&selector)).await;
        let pods = listed.map_err(|error| self.fault("listing the agents", &needs, &error))?;
        let agents = agents(pods.items);
        let wanted = self.wanted().await;
        let nobody = matches!(wanted, Ok(0) | Err(_));
        if agents.is_empty() && nobody {
            return Err(self.not_installed(&selector).await);
        }
        Ok(Roster { agents, wanted })
    }

    async fn wanted(&self) -> Result<usize, AskError> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        let needs = rights::in_namespace("list daemonsets.apps", &self.namespace);
        let listed = sets.list(&ListParams::default().labels(OURS)).await;
        let listed =
            listed.map_err(|error| self.fault("listing the agents' DaemonSet", &needs, &error))?;
        let is_theirs =
            |set: &DaemonSet| set.spec.as_ref().is_some_and(|spec| makes(&spec.template, AGENT));
        let theirs = listed.items.into_iter().filter(is_theirs);
        let wanted = theirs.filter_map(|set| set.status);
        let wanted = wanted.map(|status| usize::try_from(status.desired_number_scheduled));
        Ok(wanted.flatten().sum())
    }

    /// Returns the error for a namespace without Sluice. Says where Sluice is instead, if the operator may know that.
    async fn not_installed(&self, selector: &str) -> AskError {
        let all: Api<Pod> = Api::all(self.client.clone());
        let found = all.list(&ListParams::default().labels(selector)).await;
        let elsewhere: BTreeSet<String> = found
            .map(|pods| pods.items.iter().filter_map(ResourceExt::namespace).collect())
            .unwrap_or_default();
        let hint = if elsewhere.is_empty() {
            "install it with `helm install sluice deploy/helm/sluice --namespace sluice-system --create-namespace`, \
             or name its namespace with --namespace"
                .to_owned()
        } else {
            let names: Vec<String> = elsewhere.into_iter().collect();
            format!("its agents are in {}: pass --namespace", names.join(", "))
        };
        AskError::NotInstalled { namespace: self.namespace.clone(), hint }
    }

    pub(super) fn fault(&self, what: &str, needs: &str, error: &kube::Error) -> AskError {
        AskError::new(&self.server, what, needs, error)
    }
}

// === impl Roster ===

impl Roster {
    /// Keeps only the agents of these nodes, or all of them when no node is named.
    pub fn on(mut self, nodes: &[String]) -> Result<Self, AskError> {
        if nodes.is_empty() {
            return Ok(self);
        }
        for node in nodes {
            if !self.agents.iter().any(|agent| agent.node == *node) {
                let known: Vec<&str> =
                    self.agents.iter().map(|agent| agent.node.as_str()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(AskError::NoAgentOn { node: node.clone(), known });
            }
        }
        self.agents.retain(|agent| nodes.contains(&agent.node));
        self.wanted = Ok(self.agents.len());
        Ok(self)
    }
}

/// Chooses one pod for each node: one that is being deleted counts only where no other has come.
fn agents(pods: Vec<Pod>) -> Vec<AgentPod> {
    let mut by_node: BTreeMap<String, (bool, AgentPod)> = BTreeMap::new();
    for pod in pods {
        let Some(node) = node(&pod) else { continue };
        let is_leaving = pod.metadata.deletion_timestamp.is_some();
        let agent = agent(&node, &pod, is_leaving);
        let worth = |(is_leaving, agent): &(bool, AgentPod)| {
            (!is_leaving, agent.state == AgentState::Ready)
        };
        let entry = (is_leaving, agent);
        let is_better = by_node.get(&node).is_none_or(|known| worth(known) < worth(&entry));
        if is_better {
            by_node.insert(node, entry);
        }
    }
    by_node.into_values().map(|(_, agent)| agent).collect()
}

/// Returns the node that a pod runs on, or for which its DaemonSet has made it.
fn node(pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let required = || {
        let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
        let required = affinity.required_during_scheduling_ignored_during_execution.as_ref()?;
        let fields =
            required.node_selector_terms.iter().flat_map(|term| term.match_fields.iter().flatten());
        fields
            .into_iter()
            .find(|field| field.key == "metadata.name")?
            .values
            .as_ref()?
            .first()
            .cloned()
    };
    spec.node_name.clone().or_else(required)
}

/// Returns why the pod is not scheduled; `None` if it is.
fn unscheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|condition| condition.type_ == "PodScheduled")?;
    (scheduled.status != "True").then(|| {
        format!(
            "it is not scheduled: {}",
            scheduled.message.as_deref().unwrap_or("nobody says why")
        )
    })
}

fn agent(node: &str, pod: &Pod, is_leaving: bool) -> AgentPod {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref());
    let container = containers.unwrap_or_default().iter().find(|status| status.name == AGENT);
    let not_yet = || {
        let why = unscheduled(pod);
        AgentState::Down(why.unwrap_or_else(|| "its container has not been started yet".to_owned()))
    };
    let mut state = container.map_or_else(not_yet, agent_state);
    if is_leaving && state == AgentState::Ready {
        state = AgentState::NotReady("its pod is being deleted".to_owned());
    }
    AgentPod {
        node: node.to_owned(),
        name: pod.name_any(),
        state,
        has_cni: spec.is_some_and(|spec| spec.containers.iter().any(keeps_the_plugin)),
        account: spec.and_then(|spec| spec.service_account_name.clone()).unwrap_or_default(),
    }
}

/// The container is there in any case; it keeps the plugin out where the chart says so.
fn keeps_the_plugin(container: &Container) -> bool {
    container.name == CNI && container.args.iter().flatten().any(|argument| argument == "watch")
}

fn agent_state(container: &ContainerStatus) -> AgentState {
    let state = container.state.as_ref();
    if state.is_some_and(|state| state.running.is_some()) {
        return if container.ready {
            AgentState::Ready
        } else {
            AgentState::NotReady("it runs, and does not say that it is ready".to_owned())
        };
    }
    let waiting = state.and_then(|state| state.waiting.as_ref()).map(|waiting| {
        let message = waiting.message.as_deref().unwrap_or_default();
        format!("{} {message}", waiting.reason.as_deref().unwrap_or("waiting"))
    });
    let ended = |state: &k8s_openapi::api::core::v1::ContainerState| {
        let ended = state.terminated.as_ref()?;
        // The chart has Kubernetes take the end of the container's log as this message.
        let said = ended.message.as_deref().unwrap_or_default().trim().lines().next_back();
        let said = said.map(|said| format!(": {said}")).unwrap_or_default();
        Some(format!("it ended with {}{said}", ended.exit_code))
    };
    let last = container.last_state.as_ref().and_then(ended);
    let now = waiting.or_else(|| state.and_then(ended)).unwrap_or_else(|| "unknown".to_owned());
    let words = [Some(now), last].into_iter().flatten().map(|text| text.trim().to_owned());
    AgentState::Down(words.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, leaving: bool, state: &serde_json::Value, ready: bool) -> Pod {
        let cni = if name == "without" { "keep-out" } else { "watch" };
        let deleted = leaving.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({
            "metadata": {"name": name, "deletionTimestamp": deleted},
            "spec": {"nodeName": node, "serviceAccountName": "sluice-agent",
                     "containers": [{"name": "agent"}, {"name": "cni", "args": [cni]}]},
            "status": {"containerStatuses": [{"name": "agent", "image": "", "imageID": "",
                       "restartCount": 0, "ready": ready, "state": state}]}
        }))
        .unwrap()
    }

    #[test]
    fn the_pod_that_comes_counts_and_not_the_one_that_leaves() {
        let running = json!({"running": {}});
        let found = agents(vec![
            pod("new", "n1", false, &json!({"waiting": {"reason": "CrashLoopBackOff"}}), false),
            pod("old", "n1", true, &running, true),
            pod("only", "n2", true, &running, true),
            pod("well", "n3", false, &running, true),
        ]);
        let states: Vec<_> =
            found.iter().map(|agent| (agent.name.as_str(), &agent.state)).collect();
        assert!(
            matches!(
                states[..],
                [
                    ("new", AgentState::Down(_)),
                    ("only", AgentState::NotReady(_)),
                    ("well", AgentState::Ready)
                ]
            ),
            "{states:?}"
        );
        assert!(found[0].has_cni && found[0].account == "sluice-agent");
        let without = agents(vec![pod("without", "n1", false, &running, true)]);
        assert!(!without[0].has_cni, "the plugin is kept out");
    }

    #[test]
    fn an_agent_that_failed_is_quoted_by_its_last_words() {
        let ended = json!({"exitCode": 1, "message": "INFO starting\nsluice: no such file\n"});
        let state = json!({"terminated": ended});
        let mut agent =
            pod("a", "n1", false, &json!({"waiting": {"reason": "CrashLoopBackOff"}}), false);
        let status = agent.status.as_mut().unwrap().container_statuses.as_mut().unwrap();
        status[0].last_state = Some(serde_json::from_value(state).unwrap());
        let down = "CrashLoopBackOff; it ended with 1: sluice: no such file".to_owned();
        assert_eq!(agents(vec![agent])[0].state, AgentState::Down(down));
    }

    #[test]
    fn an_agent_that_no_node_takes_is_named_with_the_node_that_it_is_for() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "agent"}], "affinity": {"nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
                ]}
            }}},
            "status": {"conditions": [
                {"type": "PodScheduled", "status": "False", "message": "Insufficient memory."}
            ]}
        }))
        .unwrap();
        let found = agents(vec![pod]);
        let down = AgentState::Down("it is not scheduled: Insufficient memory.".to_owned());
        assert_eq!((found[0].node.as_str(), &found[0].state), ("n1", &down));
    }

    #[test]
    fn a_node_that_has_no_agent_is_named_with_those_that_have() {
        let agents = agents(vec![pod("a", "n1", false, &json!({"running": {}}), true)]);
        let roster = Roster { agents, wanted: Ok(3) };
        let error = roster.clone().on(&["n9".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "no agent is on the node \"n9\": agents are on n1");
        assert_eq!(roster.on(&["n1".to_owned()]).unwrap().wanted, Ok(1));
    }
}
