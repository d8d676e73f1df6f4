//! Sluice on the cluster, installed with its chart as users install it, and what the tests ask of it.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::{Cluster, LAB_IMAGE, NODES, Namespace, wait_for};
use crate::{Canary, Capture, cleanup};

/// The namespace in which the chart is installed.
pub const SYSTEM: &str = "sluice-system";
/// The annotation of a pod that is captured.
const REDIRECTION: &str = r"ambient\.istio\.io/redirection";
const PATIENCE: Duration = Duration::from_mins(2);
/// The name of a node's link to the others.
const UPLINK: &str = "eth0";

/// A component that was killed. Dropping this starts it again, also in a test that fails.
#[derive(Debug)]
pub struct Away<'a> {
    cluster: &'a Cluster,
    unit: &'a str,
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        // Controllers give up if the API server is away for long.
        for unit in [self.unit, "control/kube-controller-manager", "control/kube-scheduler"] {
            if self.cluster.pid(unit).is_none()
                && let Err(error) = self.cluster.start(unit)
            {
                cleanup::report(&format!("{unit} stays away: {error:#}"));
            }
        }
    }
}

impl Cluster {
    /// Kills a component, `control/kube-apiserver` for instance. It is away until the result is dropped.
    pub fn away<'a>(&'a self, unit: &'a str) -> Result<Away<'a>> {
        self.kill(unit)?;
        Ok(Away { cluster: self, unit })
    }

    /// Installs the chart, or brings an installation to the chart's state, and waits until every agent is ready.
    pub fn install(&self) -> Result<()> {
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/sluice");
        self.helm(&[
            "upgrade",
            "--install",
            "sluice",
            &chart.display().to_string(),
            "--namespace",
            SYSTEM,
            "--create-namespace",
            "--set",
            "image.pullPolicy=Never",
        ])?;
        self.await_agents()
    }

    /// Waits until the controller and the agent of every node are ready.
    pub fn await_agents(&self) -> Result<()> {
        for workload in ["deployment/sluice-controller", "daemonset/sluice-agent"] {
            let status = ["-n", SYSTEM, "rollout", "status", workload, "--timeout=120s"];
            self.kubectl(&status).map_err(|error| {
                let state = self.kubectl(&["-n", SYSTEM, "describe", "pods"]).unwrap_or_default();
                error.context(format!("{state}\n{}", self.agents_logs()))
            })?;
        }
        Ok(())
    }

    /// Returns what the agents and the controller have logged lately, except connections that went well.
    pub fn agents_logs(&self) -> String {
        let selector = "-lapp.kubernetes.io/component in (agent,controller)";
        let logs = ["-n", SYSTEM, "logs", selector, "--all-containers", "--tail=20000", "--prefix"];
        self.kubectl(&logs).map_or_else(|error| format!("{error:#}"), |logs| without_traffic(&logs))
    }

    /// Returns the name of a node's agent pod.
    pub fn agent(&self, node: &str) -> Result<String> {
        let name = self.kubectl(&[
            "-n",
            SYSTEM,
            "get",
            "pods",
            "-lapp.kubernetes.io/component=agent",
            "--field-selector",
            &format!("spec.nodeName={node},status.phase=Running"),
            "-o",
            "jsonpath={.items[0].metadata.name}",
        ])?;
        Ok(name.trim().to_owned())
    }

    /// Returns the id of a node's agent container, as containerd knows it.
    pub fn agent_container(&self, node: &str) -> Result<String> {
        let agent = self.agent(node)?;
        let path = r#"jsonpath={.status.containerStatuses[?(@.name=="agent")].containerID}"#;
        let id = self.kubectl(&["-n", SYSTEM, "get", "pod", &agent, "-o", path])?;
        let id = id.trim().strip_prefix("containerd://").with_context(|| format!("id {id:?}"))?;
        Ok(id.to_owned())
    }

    /// Returns what `sluice COMMAND --output json` prints on a node.
    pub fn sluice(&self, node: &str, command: &str) -> Result<serde_json::Value> {
        let agent = self.agent(node)?;
        let exec = ["-n", SYSTEM, "exec", &agent, "-c", "agent", "--", "/usr/local/bin/sluice"];
        let mut arguments = exec.to_vec();
        arguments.extend([command, "--output", "json"]);
        // The exit code is ignored: it tells how the mesh is, and the output tells more.
        let output = self.program("kubectl").args(&arguments).output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        serde_json::from_str(&text).with_context(|| format!("sluice {command} said {text}{errors}"))
    }

    /// Watches the link of the first node to the others.
    pub fn eavesdrop(&self, canary: &Canary) -> Result<Capture> {
        let [first, _] = NODES;
        Capture::start(&self.netns(first)?, UPLINK, canary)
    }
}

impl Namespace {
    /// Brings the namespace into the mesh.
    pub fn enrol(&self) -> Result<()> {
        self.label("istio.io/dataplane-mode=ambient")
    }

    /// Takes the namespace out of the mesh again.
    pub fn leave(&self) -> Result<()> {
        self.label("istio.io/dataplane-mode-")
    }

    fn label(&self, label: &str) -> Result<()> {
        self.cluster.kubectl(&["label", "--overwrite", "namespace", &self.name, label]).map(drop)
    }

    /// Returns the number of pods that are annotated as captured.
    pub fn captured(&self) -> Result<usize> {
        let path = format!("jsonpath={{.items[*].metadata.annotations.{REDIRECTION}}}");
        let marks = self.kubectl(&["get", "pods", "-o", &path])?;
        Ok(marks.split_whitespace().filter(|mark| *mark == "enabled").count())
    }

    /// Waits until exactly this number of pods are annotated as captured.
    pub fn await_captured(&self, count: usize) -> Result<()> {
        let what = format!("{count} captured pods in {}", self.name);
        wait_for(&what, PATIENCE, || Ok(self.captured()? == count)).map_err(|error| {
            let seen = self.captured().unwrap_or_default();
            error.context(format!("{seen} are; agents: {}", self.cluster.agents_logs()))
        })
    }

    /// Returns every container with its id and restarts: equal before and after if nothing was restarted.
    pub fn containers(&self) -> Result<String> {
        let path = "jsonpath={range .items[*]}{.metadata.name}={.status.containerStatuses[*].containerID}/{.status.containerStatuses[*].restartCount} {end}";
        self.kubectl(&["get", "pods", "-o", path])
    }

    /// Fetches a page from a pod and returns it.
    pub fn fetch(&self, from: &str, url: &str) -> Result<String> {
        let page = self.exec(from, &["timeout", "5", "wget", "-q", "-O", "-", url])?;
        ensure!(!page.is_empty(), "{url} is empty");
        Ok(page)
    }

    /// Returns the manifest of a pod of the lab image with its own service account.
    pub fn pod(&self, name: &str, node: &str, command: &str, more: &str) -> String {
        format!(
            "apiVersion: v1
kind: ServiceAccount
metadata: {{name: {name}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {name}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {name}
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: {LAB_IMAGE}
    imagePullPolicy: Never
    command: [sh, -c, '{command}']
{more}
---
"
        )
    }
}

fn without_traffic(logs: &str) -> String {
    let tells = |line: &&str| !line.contains("connection complete") || line.contains("error=");
    logs.lines().filter(tells).collect::<Vec<_>>().join("\n")
}
