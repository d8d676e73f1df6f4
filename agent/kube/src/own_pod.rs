//! What the agent says of itself, on its own pod.

use std::time::Duration;

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::client::{ApiFault, within};

/// The condition that is a readiness gate of the agent's pod: a health check over the node's network might be
/// answered by the agent that is about to be replaced.
const SERVING: &str = "sluice.dev/Serving";
/// The annotation that says that nothing of the mesh is left on the pod's node.
pub(crate) const LEFT: &str = "sluice.dev/left";
const PAUSE: Duration = Duration::from_secs(2);

/// The pod that the agent runs in; cheap to clone.
#[derive(Clone)]
pub struct OwnPod {
    api: Api<Pod>,
    name: String,
}

impl OwnPod {
    pub(crate) fn new(client: &Client, namespace: &str, name: &str) -> Self {
        Self { api: Api::namespaced(client.clone(), namespace), name: name.to_owned() }
    }

    /// Says that this agent serves the node's pods now; until the API server has taken it.
    pub async fn serves(&self) {
        let now = Timestamp::now().to_string();
        let condition = json!({ "type": SERVING, "status": "True", "lastTransitionTime": now });
        self.patch(&json!({ "status": { "conditions": [condition] } })).await;
    }

    /// Says that nothing of the mesh is left on the node; until the API server has taken it.
    pub async fn has_left(&self) {
        self.patch(&json!({ "metadata": { "annotations": { LEFT: "true" } } })).await;
    }

    async fn patch(&self, patch: &Value) {
        let mut said = None;
        loop {
            let (parameters, change) = (PatchParams::default(), Patch::Strategic(patch));
            let outcome = within(self.api.patch_status(&self.name, &parameters, &change)).await;
            let Err(error) = outcome else { return };
            let fault =
                ApiFault::new("the state of the agent's own pod", "patch on pods/status", &error);
            let text = fault.to_string();
            if said.as_ref() != Some(&text) {
                tracing::warn!(pod = self.name, error = text, "not told yet; trying again");
                said = Some(text);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
