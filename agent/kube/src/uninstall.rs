//! Takes every pod out of the mesh before Sluice is deleted: `helm uninstall` waits for this.
//!
//! First it is made sure that every node has an agent that can let go of its pods; only then is the mark set
//! that the agents follow (see [`crate::leaving`]). Each of them says on its own pod when nothing of the mesh is
//! left on its node. What one had said before the mark was set is of an uninstallation that was called off, and does
//! not count.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::{
    api::{apps::v1::DaemonSet, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;
use sluice_cluster::object::{self, CAPTURED};

use crate::{
    ApiServer,
    client::{ApiFault, within},
    leaving::MARK,
    own_pod::LEFT,
    resource,
    watched::Watched,
};

/// How long to wait for agents that are not ready, before anything is changed.
const READINESS: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_secs(1);
const PAGE: u32 = 500;
/// How many pods a message names; the others are counted.
const NAMED: usize = 20;

/// Why Sluice must not be deleted.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The API server refused, or could not be asked.
    #[error(transparent)]
    Api(#[from] ApiFault),
    /// Some node's agent could not let go of its pods. Nothing has been changed.
    #[error(
        "{0}Nothing has been changed. Repair these agents, or drain and delete their nodes, and run `helm uninstall` \
         again."
    )]
    NotReady(String),
    /// Some node's agent did not let go of its pods.
    #[error(
        "{left}The others are out of the mesh, and these stay captured: without an agent their connections would be \
         refused. Repair these agents, or drain and delete their nodes, and run `helm uninstall` again; or take \
         every pod in again: kubectl -n {namespace} annotate daemonset {daemon_set} {mark}-",
        mark = MARK
    )]
    NotLeft {
        /// Nodes, their agents and their pods.
        left: String,
        /// Where the agents are.
        namespace: String,
        /// The DaemonSet that they belong to.
        daemon_set: String,
    },
}

/// An uninstallation, asked of the API server.
pub struct Uninstallation {
    client: Client,
    namespace: String,
    daemon_set: String,
}

/// What the pods of a node's agents say about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Node {
    /// The names of the agents' pods; more than one while one replaces another.
    agents: Vec<String>,
    /// Whether one of them is ready.
    ready: bool,
    /// Whether one of them has said that nothing is left, since the mark was set.
    left: bool,
}

/// What agents have said of when they left, by their pods.
type Said = BTreeMap<String, String>;

/// What there is to wait for.
#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<String, Node>,
    /// How many nodes should have an agent.
    wanted: usize,
    /// Captured pods, by node.
    captured: BTreeMap<String, Vec<String>>,
    /// Whether the mark was set already.
    is_marked: bool,
    said: Said,
}

// === impl Uninstallation ===

impl Uninstallation {
    /// Prepares the uninstallation of the agents of this DaemonSet.
    pub fn new(ApiServer(client): ApiServer, namespace: &str, daemon_set: &str) -> Self {
        Self { client, namespace: namespace.to_owned(), daemon_set: daemon_set.to_owned() }
    }

    /// Has every agent let go of its pods, within `patience`. Progress is reported through `say`.
    ///
    /// # Errors
    ///
    /// When that is not confirmed for every node and every pod.
    pub async fn run(
        &self,
        patience: Duration,
        mut say: impl FnMut(&str),
    ) -> Result<(), UninstallError> {
        let started = Instant::now();
        let before = loop {
            let Some(state) = self.look(&Said::new()).await? else {
                say("there is no agent: nothing to take out of the mesh");
                return Ok(());
            };
            let Some(complaint) = state.unready() else {
                // A run that goes on with an earlier one's work counts what came of that.
                break if state.is_marked { Said::new() } else { state.said };
            };
            if started.elapsed() >= READINESS {
                return Err(UninstallError::NotReady(complaint));
            }
            tokio::time::sleep(PAUSE).await;
        };
        self.mark().await?;
        say("marked: the agents let go of their pods");
        loop {
            // Gone meanwhile: somebody deleted it by hand, and nothing can be confirmed any more.
            let state = self.look(&before).await?.unwrap_or_default();
            let Some(left) = state.not_left() else {
                say(&format!("nothing of the mesh is left on {} nodes", state.nodes.len()));
                return Ok(());
            };
            if started.elapsed() >= patience {
                let (namespace, daemon_set) = (self.namespace.clone(), self.daemon_set.clone());
                return Err(UninstallError::NotLeft { left, namespace, daemon_set });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The state without what the agents had said `before`.
    async fn look(&self, before: &Said) -> Result<Option<State>, ApiFault> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        let refused = |error| ApiFault::new("reading the agents' daemonset", "get on it", &error);
        let Some(set) = within(sets.get_opt(&self.daemon_set)).await.map_err(refused)? else {
            return Ok(None);
        };
        let is_marked = set.annotations().contains_key(MARK);
        let selector = set.spec.and_then(|spec| spec.selector.match_labels).unwrap_or_default();
        let wanted = set.status.map_or(0, |status| status.desired_number_scheduled);
        let selector: Vec<_> =
            selector.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let agents: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let list = ListParams::default().labels(&selector.join(","));
        let refused = |error| ApiFault::new("listing the agents", "list on pods", &error);
        let wanted = usize::try_from(wanted).unwrap_or(0);
        let mut state = State { wanted, is_marked, ..State::default() };
        for agent in within(agents.list(&list)).await.map_err(refused)? {
            state.count(&agent, before);
        }
        state.captured = self.captured().await?;
        Ok(Some(state))
    }

    async fn captured(&self) -> Result<BTreeMap<String, Vec<String>>, ApiFault> {
        let pods: Api<Watched<object::Pod>> =
            Api::all_with(self.client.clone(), &resource::PODS.api(0));
        let mut captured: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let mut list = ListParams::default().limit(PAGE);
        loop {
            let refused = |error| ApiFault::new("listing captured pods", "list on pods", &error);
            let page = within(pods.list(&list)).await.map_err(refused)?;
            for Watched { object: pod, .. } in page.items {
                if pod.metadata.annotations.contains_key(CAPTURED) {
                    let name = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
                    captured.entry(pod.spec.node_name.unwrap_or_default()).or_default().push(name);
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => list = list.continue_token(&token),
                None => return Ok(captured),
            }
        }
    }

    async fn mark(&self) -> Result<(), ApiFault> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        let since = Timestamp::now().to_string();
        let patch = json!({ "metadata": { "annotations": { MARK: since } } });
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let marked = within(sets.patch(&self.daemon_set, &parameters, &patch)).await;
        let refused = |error| ApiFault::new("marking the agents' daemonset", "patch on it", &error);
        marked.map(drop).map_err(refused)
    }
}

// === impl State ===

impl State {
    fn count(&mut self, agent: &Pod, before: &Said) {
        let node = agent.spec.as_ref().and_then(|spec| spec.node_name.clone());
        // A pod that waits to be scheduled is no node's agent yet.
        let Some(node) = node else { return };
        let node = self.nodes.entry(node).or_default();
        let conditions = agent.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let is_ready = conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let name = agent.name_any();
        let said = agent.annotations().get(LEFT);
        node.ready |= is_ready && agent.metadata.deletion_timestamp.is_none();
        node.left |= said.is_some() && said != before.get(&name);
        node.agents.push(name.clone());
        self.said.extend(said.map(|said| (name, said.clone())));
    }

    /// Returns what keeps the agents from letting go of their pods.
    fn unready(&self) -> Option<String> {
        let mut lines = Vec::new();
        for (name, node) in self.nodes.iter().filter(|(_, node)| !node.ready) {
            lines.push(format!("node {name}: its agent {} is not ready", node.agents.join(", ")));
        }
        if self.nodes.len() < self.wanted {
            let (has, wanted) = (self.nodes.len(), self.wanted);
            lines.push(format!("{wanted} nodes should have an agent, and {has} have one"));
        }
        let without = self.captured.iter().filter(|(node, _)| !self.nodes.contains_key(*node));
        for (node, pods) in without {
            lines.push(format!("node {node} has no agent, and captured pods: {}", names(pods)));
        }
        (!lines.is_empty()).then(|| lines.join("\n") + "\n")
    }

    /// Returns where something is left; `None` once it is confirmed everywhere that nothing is.
    fn not_left(&self) -> Option<String> {
        let mut lines = Vec::new();
        for (name, node) in self.nodes.iter().filter(|(_, node)| !node.left) {
            let agents = node.agents.join(", ");
            lines.push(format!("node {name}: its agent {agents} has not let go of everything"));
        }
        if self.nodes.len() < self.wanted || self.nodes.is_empty() {
            lines.push("agents are missing: nobody confirms for their nodes".to_owned());
        }
        for (node, pods) in &self.captured {
            lines.push(format!("captured on node {node}: {}", names(pods)));
        }
        (!lines.is_empty()).then(|| lines.join("\n") + "\n")
    }
}

fn names(pods: &[String]) -> String {
    let named = pods.get(..NAMED).unwrap_or(pods).join(", ");
    match pods.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: bool, left: bool) -> Node {
        Node { agents: vec!["agent".to_owned()], ready, left }
    }

    fn state(nodes: [(&str, Node); 2]) -> State {
        let nodes = nodes.map(|(name, node)| (name.to_owned(), node)).into();
        State { nodes, wanted: 2, ..State::default() }
    }

    #[test]
    fn an_agent_that_is_away_is_named_before_anything_is_changed() {
        assert_eq!(state([("n1", node(true, false)), ("n2", node(true, false))]).unready(), None);
        let said = state([("n1", node(true, false)), ("n2", node(false, false))]).unready();
        let said = said.unwrap();
        assert!(
            said.contains("node n2: its agent agent is not ready") && !said.contains("n1"),
            "{said}"
        );
        let mut missing = state([("n1", node(true, false)), ("n2", node(true, false))]);
        missing.nodes.remove("n2");
        assert!(missing.unready().unwrap().contains("2 nodes should have an agent, and 1 have"));
        missing.wanted = 1;
        missing.captured.insert("n9".to_owned(), vec!["shop/web".to_owned()]);
        assert!(
            missing
                .unready()
                .unwrap()
                .contains("node n9 has no agent, and captured pods: shop/web")
        );
    }

    #[test]
    fn every_node_has_to_confirm_and_no_pod_may_be_left() {
        let mut state = state([("n1", node(true, true)), ("n2", node(true, false))]);
        assert!(state.not_left().unwrap().contains("node n2"));
        state.nodes.insert("n2".to_owned(), node(false, true));
        assert_eq!(state.not_left(), None);
        let pods = (0..30).map(|index| format!("shop/web-{index}")).collect();
        state.captured.insert("n1".to_owned(), pods);
        let said = state.not_left().unwrap();
        assert!(said.contains("web-19 and 10 more") && !said.contains("web-20"), "{said}");
        assert!(State::default().not_left().is_some(), "nobody confirms nothing");
    }

    #[test]
    fn what_an_agent_said_at_an_uninstallation_that_was_called_off_does_not_count() {
        let agent = |left: Option<&str>| {
            let annotations = left.map(|left| json!({ "sluice.dev/left": left }));
            let metadata = json!({ "name": "agent", "annotations": annotations });
            let spec = json!({ "nodeName": "n1", "containers": [] });
            serde_json::from_value(json!({ "metadata": metadata, "spec": spec }))
        };
        let look = |left, before: &Said| {
            let mut state = State { wanted: 1, ..State::default() };
            state.count(&agent(left).unwrap(), before);
            state
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let before = look(Some(old), &Said::new()).said;
        assert!(look(Some(old), &before).not_left().is_some());
        assert!(look(None, &before).not_left().is_some());
        assert_eq!(look(Some(new), &before).not_left(), None);
        assert_eq!(
            look(Some(old), &Said::new()).not_left(),
            None,
            "of an earlier run that goes on"
        );
    }
}
