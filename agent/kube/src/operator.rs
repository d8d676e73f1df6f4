//! What an operator's commands ask of a whole cluster, from a machine with a kubeconfig.
//!
//! Agents are asked by `exec`: their own program runs in their own container and speaks to their own Unix socket. No
//! port is opened for it, so neither other machines nor pods that share a node's network can ask; the API server
//! decides who may. Whoever may `exec` into an agent is root on its node: see the chart's `operator.yaml`.

mod access;
mod agents;
mod exec;
mod facts;
mod fault;
mod rights;

pub use access::Access;
pub use agents::{AgentPod, AgentState, Roster};
pub use exec::Ran;
pub use facts::{Controllers, ServerFacts, apart};
pub use fault::AskError;
pub use rights::{AGENTS_NEED, OPERATORS_NEED, Right};

use k8s_openapi::api::core::v1::PodTemplateSpec;
use kube::Client;

/// The label that the chart gives to all of Sluice's objects.
const OURS: &str = "app.kubernetes.io/name=sluice";
/// The label that tells the parts of Sluice apart.
const COMPONENT: &str = "app.kubernetes.io/component";

/// Returns whether pods of this template belong to the given part of Sluice.
fn makes(template: &PodTemplateSpec, part: &str) -> bool {
    let labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    labels.and_then(|labels| labels.get(COMPONENT)).is_some_and(|label| label == part)
}

/// A cluster as an operator sees it; cheap to clone.
#[derive(Clone)]
pub struct Operator {
    client: Client,
    /// URL of the API server, for messages.
    server: String,
    /// Where Sluice is installed.
    namespace: String,
}

// === impl Operator ===

impl Operator {
    /// Returns the URL of the API server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// Returns the namespace in which Sluice is looked for.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}
