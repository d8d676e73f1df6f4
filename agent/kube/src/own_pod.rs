//! What the agent says about itself on its own pod.

use std::{sync::Arc, time::Duration};

use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::client::{ApiFault, within};

/// The condition that is the readiness gate of the agent's pod: a health check over the node's network might be
/// answered by the agent that is about to be replaced.
const SERVING: &str = "sluice.dev/Serving";
/// The annotation that says since when nothing of the mesh is left on the pod's node.
pub(crate) const LEFT: &str = "sluice.dev/left";
const PAUSE: Duration = Duration::from_secs(2);

/// The pod that the agent runs in; cheap to clone.
#[derive(Clone)]
pub struct OwnPod {
    api: Api<Pod>,
    name: String,
    /// Whether nothing of the mesh is left; held while something is being said, so that it is said in order.
    left: Arc<Mutex<bool>>,
}

impl OwnPod {
    pub(crate) fn new(client: &Client, namespace: &str, name: &str) -> Self {
        let api = Api::namespaced(client.clone(), namespace);
        Self { api, name: name.to_owned(), left: Arc::default() }
    }

    /// Says that this agent serves the node's pods now; until the API server has taken it. What an agent in this pod
    /// said at an uninstallation that was called off is true no more.
    pub async fn serves(&self) {
        let has_left = self.left.lock().await;
        let now = Timestamp::now().to_string();
        let condition = json!({ "type": SERVING, "status": "True", "lastTransitionTime": now });
        let annotations = if *has_left { json!({}) } else { json!({ LEFT: null }) };
        let metadata = json!({ "annotations": annotations });
        self.patch(&json!({ "metadata": metadata, "status": { "conditions": [condition] } })).await;
    }

    /// Says that nothing of the mesh is left on the node. Tries until the API server has accepted it.
    pub async fn has_left(&self) {
        let mut has_left = self.left.lock().await;
        *has_left = true;
        let now = Timestamp::now().to_string();
        self.patch(&json!({ "metadata": { "annotations": { LEFT: now } } })).await;
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
