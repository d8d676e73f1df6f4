//! Components of the cluster can be killed and started one by one. Alone in its file, because it disturbs others.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Cluster,
    cluster::{LAB_IMAGE, NODES, wait_for},
};

const PATIENCE: Duration = Duration::from_mins(1);

#[test]
fn pods_go_on_while_kubelet_and_containerd_are_killed_and_started() -> Result<()> {
    let cluster = Cluster::open()?;
    let namespace = cluster.namespace("smoke-restart")?;
    let [node, _] = NODES;
    namespace.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: steady}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: idle, image: '{LAB_IMAGE}', imagePullPolicy: Never, command: [sleep, infinity]}}
"
    ))?;
    namespace.await_ready("pod/steady")?;
    let path = "jsonpath={.status.containerStatuses[0].containerID}";
    let before = namespace.kubectl(&["get", "pod", "steady", "-o", path])?;
    for unit in ["containerd", "kubelet"] {
        let unit = format!("{node}/{unit}");
        let pid = cluster.pid(&unit).with_context(|| format!("{unit} does not run"))?;
        cluster.kill(&unit)?;
        ensure!(cluster.pid(&unit).is_none(), "{unit} still runs");
        cluster.start(&unit)?;
        ensure!(cluster.pid(&unit) != Some(pid), "{unit} did not start anew");
    }
    wait_for("an answer through kubelet and containerd", PATIENCE, || {
        Ok(namespace.exec("steady", &["echo", "on"]).is_ok())
    })?;
    let after = namespace.kubectl(&["get", "pod", "steady", "-o", path])?;
    ensure!(before == after, "the container was made anew: {before}, then {after}");
    Ok(())
}
