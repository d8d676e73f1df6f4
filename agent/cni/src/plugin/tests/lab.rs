//! A call of the plugin and everything around it: variables, configuration, and an agent that answers.

use std::{
    collections::HashMap, ffi::OsString, fs, os::unix::net::UnixListener, path::PathBuf,
    sync::mpsc, thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    plugin::{Outcome, run},
    protocol::{Answer, Request, encode, receive},
};

/// The result of the plugins before ours.
pub(super) const RESULT: &str = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"veth1","mtu":1500},{"name":"eth0","sandbox":"/run/netns/x","pciID":"0","socketPath":"/s"}],"ips":[{"address":"10.0.0.2/24","interface":1},{"address":"fd00::2/64","interface":1},{"address":"10.9.9.9/32","interface":0}],"routes":[{"dst":"0.0.0.0/0","table":100,"scope":253}],"dns":{},"vendor":{"big":12345678901234567890.10}}"#;

/// A call and everything around it.
pub(super) struct Lab {
    pub(super) directory: TempDir,
    pub(super) variables: HashMap<&'static str, OsString>,
    pub(super) config: Value,
}

impl Lab {
    pub(super) fn new(command: &str) -> Self {
        let directory = TempDir::new().unwrap();
        let netns = directory.path().join("netns");
        fs::write(&netns, "").unwrap();
        let variables = [
            ("CNI_COMMAND", command.into()),
            ("CNI_CONTAINERID", "c0ffee".into()),
            ("CNI_IFNAME", "eth0".into()),
            ("CNI_NETNS", netns.into_os_string()),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_UID=u-1".into(),
            ),
        ];
        let config = json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "sluice-cni",
            "socket": directory.path().join("cni.sock"),
            "excludeNamespaces": ["kube-system"],
            "ownPods": [{ "namespace": "sluice-system", "namePrefix": "sluice-agent-" }],
            "somebodyElses": { "field": true },
            "prevResult": serde_json::from_str::<Value>(RESULT).unwrap(),
        });
        Self { directory, variables: variables.into(), config }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join("cni.sock")
    }

    pub(super) fn set(&mut self, field: &str, value: Value) -> &mut Self {
        self.config[field] = value;
        self
    }

    pub(super) fn version(&mut self, version: &str) -> &mut Self {
        self.config["cniVersion"] = version.into();
        self.config["prevResult"]["cniVersion"] = version.into();
        self
    }

    /// Starts an agent that always gives this answer. What it is asked comes out of the channel.
    pub(super) fn agent(&self, answer: Answer) -> mpsc::Receiver<Request> {
        let listener = UnixListener::bind(self.socket()).unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                sender.send(receive(&mut stream).unwrap()).ok();
                std::io::Write::write_all(&mut stream, &encode(&answer).unwrap()).unwrap();
            }
        });
        receiver
    }

    pub(super) fn run_text(&self, text: &str, retired: bool) -> Outcome {
        let variables = |name: &str| self.variables.get(name).cloned();
        run(&variables, &mut text.as_bytes(), retired)
    }

    pub(super) fn run(&self) -> Outcome {
        self.run_text(&self.config.to_string(), false)
    }

    /// Runs the call, which must fail. Returns the error's code and its text.
    pub(super) fn failure(&self) -> (u64, String) {
        failure_of(&self.run())
    }
}

pub(super) fn failure_of(outcome: &Outcome) -> (u64, String) {
    assert!(!outcome.success, "{outcome:?}");
    let text = outcome.output.clone().unwrap();
    let error: Value = serde_json::from_str(&text).unwrap();
    assert!(error["cniVersion"].is_string() && error["msg"].is_string(), "{error}");
    (error["code"].as_u64().unwrap(), text)
}

pub(super) fn succeeded(outcome: &Outcome) -> Option<&str> {
    assert!(outcome.success, "{outcome:?}");
    outcome.output.as_deref()
}
