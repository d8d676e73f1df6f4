//! The mesh on a real Kubernetes, by pods, kubectl and the chart alone.

use std::{
    sync::OnceLock,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Canary, Cluster,
    cluster::{NODES, Namespace, SYSTEM, wait_for},
    full_size,
};

const PATIENCE: Duration = Duration::from_mins(1);
/// A web server that serves what is in `/www` and needs no setup.
const SERVE: &str =
    "mkdir -p /tmp/www; echo page > /tmp/www/page; exec httpd -f -p 8080 -h /tmp/www";
const IDLE: &str = "exec sleep 1000000";

/// The cluster with Sluice installed on it, once for all tests of this file.
fn mesh() -> Result<Cluster> {
    static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
    let cluster = Cluster::open()?;
    let install = || cluster.install().map_err(|error| format!("{error:#}"));
    INSTALLED.get_or_init(install).clone().map_err(anyhow::Error::msg)?;
    Ok(cluster)
}

/// One of small and full size, as `cargo xtask test --full` has it.
fn sized(small: usize, full: usize) -> usize {
    if full_size() { full } else { small }
}

fn service(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
"
    )
}

fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"
    )
}

/// A client on the first node, a server on the second, a service for it.
fn pair(namespace: &Namespace, probes: &str) -> Result<()> {
    let [first, second] = NODES;
    let client = namespace.pod("client", first, IDLE, "");
    let server = namespace.pod("server", second, SERVE, probes);
    namespace.apply(&(client + &server + &service("server")))?;
    for pod in ["pod/client", "pod/server"] {
        namespace.await_ready(pod)?;
    }
    wait_for("the server", PATIENCE, || Ok(namespace.fetch("client", "http://server/page").is_ok()))
}

fn send(namespace: &Namespace, canary: &Canary) -> Result<String> {
    namespace.fetch("client", &format!("http://server/page?{canary}"))
}

#[test]
fn a_label_captures_running_pods_and_takes_them_out_again_without_a_restart() -> Result<()> {
    let cluster = mesh()?;
    let namespace = cluster.namespace("mesh-label")?;
    let others: String = (0..18)
        .map(|index| namespace.pod(&format!("pod-{index}"), NODES[index % 2], IDLE, ""))
        .collect();
    namespace.apply(&others)?;
    pair(&namespace, "")?;
    namespace.await_ready("-lapp")?;
    let (containers, canary) = (namespace.containers()?, Canary::new()?);

    let wire = cluster.eavesdrop(&canary)?;
    send(&namespace, &canary)?;
    wire.wait_for_canary(PATIENCE).context("positive control: plaintext before the label")?;

    let labelled = Instant::now();
    namespace.enrol()?;
    namespace.await_captured(20)?;
    println!("20 running pods captured {:?} after kubectl label was called", labelled.elapsed());
    let wire = cluster.eavesdrop(&canary)?;
    send(&namespace, &canary)?;
    wire.seen()?.ensure_tls_only(8080)?;
    ensure!(namespace.containers()? == containers, "a container was restarted");

    namespace.leave()?;
    namespace.await_captured(0)?;
    send(&namespace, &canary)?;
    wire.wait_for_canary(PATIENCE).context("plaintext again without the label")?;
    ensure!(namespace.containers()? == containers, "a container was restarted");
    Ok(())
}

#[test]
fn strict_lets_probes_and_the_mesh_in_and_nobody_else() -> Result<()> {
    let cluster = mesh()?;
    let namespace = cluster.namespace("mesh-strict")?;
    let stranger = cluster.namespace("mesh-stranger")?;
    namespace.enrol()?;
    namespace.apply(&policy("PeerAuthentication", "default", "{mtls: {mode: STRICT}}"))?;
    let probes = "    readinessProbe: {httpGet: {path: /page, port: 8080}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 3}";
    pair(&namespace, probes)?;
    let [first, second] = NODES;
    stranger.apply(&stranger.pod("stranger", first, IDLE, ""))?;
    stranger.await_ready("pod/stranger")?;

    let server = namespace.addresses("server")?.swap_remove(0);
    let url = format!("http://{server}:8080/page");
    ensure!(stranger.fetch("stranger", &url).is_err(), "a pod outside the mesh got in");
    // Another process of the server's node, from the node's own address, to the very port that is probed.
    let mut impostor = cluster.inside(second, "curl");
    let output = impostor.args(["--silent", "--max-time", "3", &url]).output()?;
    ensure!(!output.status.success(), "a process of the node passed for the kubelet");
    // Long enough for a liveness probe that fails to have the container restarted.
    thread::sleep(Duration::from_secs(6));
    namespace.await_ready("pod/server")?;
    let restarts = namespace.containers()?;
    ensure!(restarts.contains("/0 "), "probes were refused: {restarts}");
    ensure!(namespace.fetch("client", "http://server/page")? == "page\n", "the mesh itself");
    Ok(())
}

#[test]
fn an_authorization_policy_decides_by_identity_and_narrows_what_it_cannot_judge() -> Result<()> {
    let cluster = mesh()?;
    let namespace = cluster.namespace("mesh-policy")?;
    namespace.enrol()?;
    pair(&namespace, "")?;
    let [first, _] = NODES;
    namespace.apply(&namespace.pod("other", first, IDLE, ""))?;
    namespace.await_ready("pod/other")?;
    let allow = "{selector: {matchLabels: {app: server}}, action: ALLOW, \
                  rules: [{from: [{source: {principals: [cluster.local/ns/mesh-policy/sa/client]}}]}]}";
    namespace.apply(&policy("AuthorizationPolicy", "allow", allow))?;
    let get = |from: &str| namespace.fetch(from, "http://server/page").is_ok();
    wait_for("the policy to refuse", PATIENCE, || Ok(!get("other")))?;
    ensure!(get("client"), "the allowed principal was refused");

    // A rule with an HTTP method never matches at L4: the ALLOW admits nobody more, and says so.
    let l7 = "{selector: {matchLabels: {app: server}}, action: ALLOW, \
               rules: [{to: [{operation: {methods: [GET]}}]}]}";
    namespace.apply(&policy("AuthorizationPolicy", "l7", l7))?;
    wait_for("a condition on the policy", PATIENCE, || {
        let path = "jsonpath={.status.conditions[*].message}";
        let said = namespace.kubectl(&["get", "authorizationpolicies", "l7", "-o", path])?;
        Ok(said.contains("methods"))
    })?;
    ensure!(!get("other") && get("client"), "an L7 rule changed who is let in");
    Ok(())
}

#[test]
fn a_pod_that_starts_in_the_mesh_never_speaks_plaintext() -> Result<()> {
    let cluster = mesh()?;
    let namespace = cluster.namespace("mesh-birth")?;
    namespace.enrol()?;
    let [first, second] = NODES;
    namespace.apply(&(namespace.pod("server", second, SERVE, "") + &service("server")))?;
    namespace.await_ready("pod/server")?;
    let canary = Canary::new()?;
    let wire = cluster.eavesdrop(&canary)?;
    let address = namespace.addresses("server")?.swap_remove(0);
    let count = sized(24, 300);
    for batch in (0..count).collect::<Vec<_>>().chunks(12) {
        // The request is the container's first act; it ends when it was answered.
        let act = format!(
            "exec timeout 20 sh -c \"until wget -q -O /dev/null http://{address}:8080/page?{canary}; do :; done\""
        );
        let pods: String = batch
            .iter()
            .map(|index| {
                namespace.pod(&format!("young-{index}"), first, &act, "  restartPolicy: Never")
            })
            .collect();
        namespace.apply(&pods)?;
        wait_for("a batch of pods to succeed", PATIENCE * 2, || {
            let path = "jsonpath={.items[*].status.phase}";
            let phases = namespace.kubectl(&["get", "pods", "-o", path])?;
            ensure!(!phases.contains("Failed"), "a pod failed: {}", cluster.agents_logs());
            Ok(phases.matches("Succeeded").count() == batch.len())
        })?;
        let names: Vec<String> = batch.iter().map(|index| format!("pod/young-{index}")).collect();
        let mut delete = vec!["delete", "--now"];
        delete.extend(names.iter().map(String::as_str));
        namespace.kubectl(&delete)?;
    }
    wire.seen()?.ensure_tls_only(8080)?;
    // Nothing is left of them on their node.
    wait_for("the agent to have let go of every pod", PATIENCE, || {
        let status = cluster.sluice(first, "status")?;
        let pods = status["pods"].as_array().context("no pods in the status")?;
        Ok(!pods.iter().any(|pod| pod["namespace"] == "mesh-birth"))
    })
}

#[test]
fn an_agent_that_is_gone_lets_nothing_through_and_comes_back() -> Result<()> {
    let cluster = mesh()?;
    let namespace = cluster.namespace("mesh-outage")?;
    namespace.enrol()?;
    pair(&namespace, "")?;
    let canary = Canary::new()?;
    let wire = cluster.eavesdrop(&canary)?;
    let [first, _] = NODES;
    let agent = cluster.agent(first)?;
    cluster.kubectl(&[
        "-n",
        SYSTEM,
        "delete",
        "pod",
        &agent,
        "--wait=false",
        "--grace-period=1",
    ])?;
    let (gone, mut refused) = (Instant::now(), 0);
    let back = loop {
        match send(&namespace, &canary) {
            // Still the old agent, or the new one.
            Ok(_) if refused > 0 || gone.elapsed() > Duration::from_secs(10) => {
                break gone.elapsed();
            }
            Ok(_) => {}
            Err(_) => refused += 1,
        }
        ensure!(
            gone.elapsed() < PATIENCE,
            "not back after {PATIENCE:?}: {}",
            cluster.agents_logs()
        );
    };
    println!("agent's pod deleted: {refused} requests refused, served again after {back:?}");
    cluster.await_agents()?;
    wire.seen()?.ensure_tls_only(8080)?;
    ensure!(namespace.captured()? == 2, "a pod lost its mark");
    Ok(())
}

#[test]
fn an_agent_that_restarts_while_the_api_server_is_away_serves_what_it_knew() -> Result<()> {
    let cluster = mesh()?;
    let namespace = cluster.namespace("mesh-api-away")?;
    namespace.enrol()?;
    namespace.apply(&policy("PeerAuthentication", "default", "{mtls: {mode: STRICT}}"))?;
    pair(&namespace, "")?;
    let [first, second] = NODES;
    // kubectl exec needs the API server: the client runs by itself and leaves its results in a file.
    let address = namespace.addresses("server")?.swap_remove(0);
    let loop_ = format!(
        "while sleep 0.2; do if timeout 2 wget -q -O /dev/null http://{address}:8080/page; then echo $(date +%s) ok; else echo $(date +%s) failed; fi; done > /tmp/results 2>&1 < /dev/null &"
    );
    namespace.exec("client", &["sh", "-c", &loop_])?;
    let agents =
        [(first, cluster.agent_container(first)?), (second, cluster.agent_container(second)?)];
    // What an agent knows is on disk a second later. The controller asks about a token again after 30 s: later it is
    // left with what it remembers.
    thread::sleep(Duration::from_secs(32));
    let server = cluster.away("control/kube-apiserver")?;
    let away = Instant::now();
    for (node, container) in agents {
        let ctr = cluster.directory().join("bin/ctr").display().to_string();
        let mut kill = cluster.inside(node, &ctr);
        kill.args(["--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", &container]);
        ensure!(kill.status()?.success(), "killing the agent of {node}");
    }
    // The kubelet waits longer each time before it restarts a container that has ended.
    thread::sleep(Duration::from_secs(if sized(0, 1) == 1 { 60 } else { 40 }));
    let end = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    drop(server);
    wait_for("the API server", PATIENCE, || Ok(cluster.kubectl(&["get", "nodes"]).is_ok()))?;
    println!("API server away for {:?}", away.elapsed());
    // Controllers take a while to come back to work, and some longer than others; the next test needs them.
    let mut back = None;
    wait_for("the controllers", PATIENCE * 2, || {
        back = cluster.namespace("mesh-api-back").ok();
        Ok(back.is_some())
    })?;
    let back = back.context("no namespace")?;
    back.apply(&(back.pod("server", first, SERVE, "") + &service("server")))?;
    let slices =
        ["get", "endpointslices", "--output", "jsonpath={.items[*].endpoints[*].addresses}"];
    wait_for("the service", PATIENCE * 2, || Ok(back.kubectl(&slices)?.contains('[')))?;
    // CoreDNS and kube-proxy too, neither of which has to do with the mesh here.
    back.await_ready("pod/server")?;
    let url = "http://server.mesh-api-back/page";
    wait_for("the service's name", PATIENCE * 3, || Ok(namespace.fetch("client", url).is_ok()))?;
    println!("a new service served by its name {:?} after the outage", away.elapsed());
    let results = namespace.exec("client", &["cat", "/tmp/results"])?;
    // By then the agents had long been restarted; what came later says nothing of the outage.
    let late: Vec<_> = results
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(second, _)| {
            second.parse().is_ok_and(|second: u64| (end - 5..end).contains(&second))
        })
        .collect();
    let all_served = late.len() >= 5 && late.iter().all(|(_, how)| *how == "ok");
    ensure!(all_served, "not served at the end of the API server's outage: {late:?} of {results}");
    println!("all {} served in the last 5 s of the outage", late.len());
    Ok(())
}

#[test]
fn an_identity_that_the_chart_denies_is_talked_to_by_nobody_and_no_agent_restarts() -> Result<()> {
    let cluster = mesh()?;
    let namespace = cluster.namespace("mesh-denied")?;
    namespace.enrol()?;
    namespace.talkers()?;
    namespace.await_captured(2)?;
    let canary = Canary::new()?;
    namespace.await_reached("a", "b", &canary)?;
    let agents = cluster.agents()?;
    let name = namespace.name();
    cluster.change(&[&format!("trust.denied[0]=spiffe://cluster.local/ns/{name}/sa/*")])?;
    cluster.hasten_volumes()?;
    wait_for("the identity to be denied", PATIENCE, || Ok(!namespace.reaches("a", "b", &canary)?))?;
    cluster.change(&[])?;
    cluster.hasten_volumes()?;
    namespace.await_reached("a", "b", &canary)?;
    ensure!(cluster.agents()? == agents, "agents were replaced");
    Ok(())
}
