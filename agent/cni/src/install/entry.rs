//! Our entry in a list: what the plugin needs to know, and nothing that is secret.

use std::path::PathBuf;

use serde_json::json;

use crate::PLUGIN;

/// The plugin's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The agent's socket, as the node sees it.
    pub socket: PathBuf,
    /// Namespaces whose pods start without asking.
    pub exclude_namespaces: Vec<String>,
    /// Our own pods (namespace, beginning of the name), which start without asking.
    pub own_pods: Vec<(String, String)>,
}

// === impl Entry ===

impl Entry {
    /// Returns the entry as a JSON object on one line.
    pub fn to_json(&self) -> String {
        let own = |(namespace, prefix): &(String, String)| json!({ "namespace": namespace, "namePrefix": prefix });
        json!({
            "type": PLUGIN,
            "socket": self.socket,
            "excludeNamespaces": self.exclude_namespaces,
            "ownPods": self.own_pods.iter().map(own).collect::<Vec<_>>(),
        })
        .to_string()
    }
}
