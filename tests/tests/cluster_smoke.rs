//! The cluster itself, before Sluice is on it: the other tests of the cluster rely on it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Cluster,
    cluster::{LAB_IMAGE, NODES, Namespace, wait_for},
};

const PATIENCE: Duration = Duration::from_mins(1);

/// Returns a pod that serves a page and is ready once the page is there, and a service of both families for it.
fn web(node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web, labels: {{app: web}}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: {LAB_IMAGE}
    imagePullPolicy: Never
    command: [sh, -c, 'echo serving; exec httpd -f -p 8080 -h /www']
    ports: [{{name: http, containerPort: 8080}}]
    readinessProbe: {{httpGet: {{path: /page, port: http}}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  selector: {{app: web}}
  ipFamilyPolicy: RequireDualStack
  ports: [{{port: 80, targetPort: http}}]
"
    )
}

/// Returns a pod that does nothing until it is told.
fn idle(name: &str, node: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - {{name: idle, image: '{LAB_IMAGE}', imagePullPolicy: Never, command: [sleep, infinity]}}
"
    )
}

fn fetch(namespace: &Namespace, host: &str) -> Result<String> {
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let port = if host.starts_with("web") { 80 } else { 8080 };
    namespace.exec(
        "client",
        &["timeout", "5", "wget", "-q", "-O", "-", &format!("http://{host}:{port}/page")],
    )
}

#[test]
fn both_nodes_are_ready_and_keep_their_standard_paths_apart() -> Result<()> {
    let cluster = Cluster::open()?;
    for node in NODES {
        cluster.kubectl(&[
            "wait",
            "--for=condition=Ready",
            &format!("node/{node}"),
            "--timeout=60s",
        ])?;
        let conflist = cluster.on_node(node, "/etc/cni/net.d/10-pods.conflist");
        ensure!(conflist.exists(), "{} is missing", conflist.display());
        let output = cluster.inside(node, "cat").arg("/etc/cni/net.d/10-pods.conflist").output()?;
        ensure!(output.stdout == std::fs::read(&conflist)?, "{node} sees another conflist");
        let pins = cluster.inside(node, "ls").arg("/sys/fs/bpf").output()?;
        ensure!(pins.status.success(), "{node} has no BPF file system");
    }
    Ok(())
}

#[test]
fn pods_of_two_nodes_talk_over_both_families_and_by_service() -> Result<()> {
    let cluster = Cluster::open()?;
    let namespace = cluster.namespace("smoke-talk")?;
    let [first, second] = NODES;
    namespace.apply(&web(second))?;
    namespace.apply(&idle("client", first))?;
    namespace.await_ready("pod/client")?;
    // Until its page is there the probe fails, and a pod that is not ready is no endpoint.
    wait_for("the web server's start", PATIENCE, || {
        Ok(namespace.kubectl(&["logs", "web"]).is_ok())
    })?;
    ensure!(fetch(&namespace, "web").is_err(), "a pod that is not ready is served by its service");
    namespace.exec("web", &["sh", "-c", "echo over the wire > /www/page"])?;
    namespace.await_ready("pod/web")?;

    let addresses = namespace.addresses("web")?;
    ensure!(addresses.len() == 2, "not dual stack: {addresses:?}");
    for address in addresses {
        let page = fetch(&namespace, &address).with_context(|| format!("to {address}"))?;
        ensure!(page == "over the wire\n", "{page:?}");
    }
    let path = "jsonpath={.spec.clusterIPs[*]}";
    let services = namespace.kubectl(&["get", "service", "web", "-o", path])?;
    ensure!(services.split(' ').count() == 2, "not dual stack: {services}");
    for address in services.split(' ') {
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let url = format!("http://{host}/page");
        let get = || namespace.exec("client", &["timeout", "5", "wget", "-q", "-O", "-", &url]);
        // kube-proxy hears of the endpoint a moment after kubectl.
        wait_for(&url, PATIENCE, || Ok(get().is_ok_and(|page| page == "over the wire\n")))?;
    }
    for name in ["web", "web.smoke-talk.svc.cluster.local"] {
        let page = fetch(&namespace, name).with_context(|| format!("to {name}"))?;
        ensure!(page == "over the wire\n", "{page:?}");
    }
    ensure!(fetch(&namespace, "web.invalid").is_err(), "a name that does not exist is served");
    Ok(())
}

#[test]
fn logs_exec_and_tokens_with_an_audience_work() -> Result<()> {
    let cluster = Cluster::open()?;
    let namespace = cluster.namespace("smoke-logs")?;
    namespace.apply(&format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: speaker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: speaker
    image: {LAB_IMAGE}
    imagePullPolicy: Never
    command: [sh, -c, 'echo a line of the log; exec sleep infinity']
    securityContext: {{privileged: true}}
    volumeMounts:
    - {{name: token, mountPath: /token}}
    - {{name: bpf, mountPath: /sys/fs/bpf}}
    - {{name: run, mountPath: /run/sluice}}
  volumes:
  - name: token
    projected: {{sources: [{{serviceAccountToken: {{audience: sluice, path: token, expirationSeconds: 600}}}}]}}
  - {{name: bpf, hostPath: {{path: /sys/fs/bpf}}}}
  - {{name: run, hostPath: {{path: /run/sluice}}}}
"
    ))?;
    namespace.await_ready("pod/speaker")?;
    ensure!(namespace.kubectl(&["logs", "speaker"])? == "a line of the log\n");
    let program = namespace.exec("speaker", &["sluice-lab", "--version"])?;
    ensure!(program.starts_with("sluice-tests "), "{program}");
    let token = namespace.exec("speaker", &["cat", "/token/token"])?;
    ensure!(token.split('.').count() == 3, "not a token: {token:?}");
    let mounts = namespace.exec("speaker", &["cat", "/proc/mounts"])?;
    ensure!(mounts.lines().any(|line| line.contains(" /sys/fs/bpf bpf ")), "{mounts}");

    let node = namespace.kubectl(&["get", "pod", "speaker", "-o", "jsonpath={.spec.nodeName}"])?;
    namespace.exec("speaker", &["sh", "-c", "echo here > /run/sluice/smoke"])?;
    let file = cluster.on_node(&node, "/run/sluice/smoke");
    ensure!(std::fs::read_to_string(&file)? == "here\n");
    std::fs::remove_file(&file)?;
    Ok(())
}
