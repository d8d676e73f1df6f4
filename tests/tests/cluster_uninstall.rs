//! `helm uninstall` takes every pod out of the mesh first, or deletes nothing.

use std::{
    io::Write as _,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Canary, Cluster,
    cluster::{NODES, Namespace, SYSTEM, wait_for},
};

const PATIENCE: Duration = Duration::from_mins(2);
/// How late it may be seen that a pod has left.
const SLACK: Duration = Duration::from_millis(100);

fn talking(cluster: &Cluster, name: &str) -> Result<(Namespace, Canary)> {
    cluster.upgrade(&["uninstall.timeoutSeconds=60"])?;
    let namespace = cluster.namespace(name)?;
    namespace.enrol()?;
    namespace.talkers()?;
    namespace.await_captured(2)?;
    let canary = Canary::new()?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        namespace.await_reached(from, to, &canary)?;
    }
    Ok((namespace, canary))
}

fn uninstall(cluster: &Cluster) -> Result<String> {
    cluster.helm(&["uninstall", "sluice", "--namespace", SYSTEM, "--timeout", "200s"])
}

/// Whether a node has a captured pod, by its pins.
fn captures(cluster: &Cluster, node: &str) -> Result<bool> {
    let output = cluster.inside(node, "find").args(["/sys/fs/bpf", "-name", "inbound"]).output()?;
    Ok(!output.stdout.is_empty())
}

/// When each node was last seen with a captured pod.
fn last_captured(cluster: &Cluster) -> Result<[Instant; 2]> {
    let mut last = [Instant::now(); 2];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut any = false;
        for (node, last) in NODES.into_iter().zip(&mut last) {
            let looked = Instant::now();
            if captures(cluster, node)? {
                (any, *last) = (true, looked);
            }
        }
        if !any {
            return Ok(last);
        }
        ensure!(Instant::now() < deadline, "pods stay captured");
        thread::sleep(Duration::from_millis(1));
    }
}

fn nothing_is_left(cluster: &Cluster) -> Result<()> {
    for node in NODES {
        let left = || cluster.remains(node);
        wait_for("nothing of Sluice to be left", PATIENCE, || Ok(left()?.is_empty()))
            .with_context(|| format!("{node}: {:?}", left()))?;
        the_stub_answers(cluster, node)?;
    }
    Ok(())
}

/// Runtimes that remember the plugin find one that lets them end their pods.
fn the_stub_answers(cluster: &Cluster, node: &str) -> Result<()> {
    let mut stub = cluster
        .inside(node, "/opt/cni/bin/sluice-cni")
        .env("CNI_COMMAND", "DEL")
        .env("CNI_CONTAINERID", "any")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", "/opt/cni/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let list = br#"{"cniVersion":"1.0.0","name":"pods","type":"sluice-cni"}"#;
    stub.stdin.take().context("its standard input")?.write_all(list)?;
    ensure!(stub.wait()?.success(), "{node}: the stub fails DEL");
    Ok(())
}

/// Whether a node's network list names the plugin.
fn is_entered(cluster: &Cluster, node: &str) -> Result<bool> {
    let output = cluster.inside(node, "/opt/cni/bin/sluice-cni").arg("look").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    found
        .get("entered")
        .and_then(serde_json::Value::as_bool)
        .context("`look` does not say whether it is entered")
}

#[test]
fn a_plugin_that_is_switched_off_is_taken_out_and_uninstalling_leaves_nodes_that_start_pods()
-> Result<()> {
    let cluster = Cluster::open()?;
    let (namespace, canary) = talking(&cluster, "life-uninstall-plugin")?;
    for node in NODES {
        wait_for("the plugin to be entered", PATIENCE, || is_entered(&cluster, node))?;
    }
    cluster.upgrade(&["uninstall.timeoutSeconds=60", "cni.enabled=false"])?;
    for node in NODES {
        wait_for("the plugin to be taken out", PATIENCE, || Ok(!is_entered(&cluster, node)?))?;
    }
    // Captured a moment after its start, by its processes.
    namespace.apply(&namespace.pod("late", NODES[0], "exec sleep 1000000", ""))?;
    namespace.await_captured(3)?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        namespace.await_reached(from, to, &canary)?;
    }
    println!("{}", uninstall(&cluster)?.trim());
    nothing_is_left(&cluster)?;
    namespace.apply(&namespace.pod("later", NODES[1], "exec sleep 1000000", ""))?;
    namespace.await_ready("pod/later")
}

#[test]
fn pods_talk_in_plaintext_only_after_they_have_left_and_nothing_stays() -> Result<()> {
    let cluster = Cluster::open()?;
    for round in ["first", "second"] {
        let (namespace, canary) = talking(&cluster, &format!("life-uninstall-{round}"))?;
        let containers = namespace.containers()?;
        let wire = cluster.eavesdrop(&canary)?;
        for pair in [("a", "b"), ("b", "a")] {
            namespace.knock(pair, &canary, 50, Duration::ZERO, 30)?;
        }
        thread::sleep(Duration::from_secs(2));
        wire.seen()?.ensure_tls_only(sluice_tests::cluster::life::PORT)?;
        let started = Instant::now();
        let (left, gone) = thread::scope(|scope| -> Result<_> {
            let watch = scope.spawn(|| last_captured(&cluster));
            let gone = uninstall(&cluster);
            Ok((watch.join().ok().context("the watch panicked")??, gone))
        })?;
        println!("{round}: {} ({:?})", gone?.trim(), started.elapsed());
        let first = wire.wait_for_canary(PATIENCE)?.first_canary.context("no time")?;
        let (earlier, later) = (left[0].min(left[1]), left[0].max(left[1]));
        println!(
            "{round}: the first plaintext came {:?} after the first pod had left, the other left {:?} after that one",
            first.saturating_duration_since(earlier),
            later - earlier
        );
        // A look at the pins takes a few milliseconds, and they go last.
        ensure!(first + SLACK > earlier, "plaintext while both pods were captured");
        for from in ["a", "b"] {
            let knocked = namespace.knocked(from, 50)?;
            println!("{round}: from {from}: {knocked}");
            ensure!(knocked.served > 0);
        }
        for (from, to) in [("a", "b"), ("b", "a")] {
            namespace.await_reached(from, to, &canary)?;
        }
        ensure!(namespace.containers()? == containers, "a container was restarted");
        ensure!(namespace.captured()? == 0, "a pod kept its mark");
        nothing_is_left(&cluster)?;
        // Pods start as on any cluster.
        namespace.apply(&namespace.pod("late", NODES[0], "exec sleep 1000000", ""))?;
        namespace.await_ready("pod/late")?;
    }
    Ok(())
}

#[test]
fn nothing_is_deleted_while_some_nodes_agent_is_away_and_the_node_is_named() -> Result<()> {
    let cluster = Cluster::open()?;
    let (namespace, canary) = talking(&cluster, "life-uninstall-away")?;
    let wire = cluster.eavesdrop(&canary)?;
    let [_, second] = NODES;
    // Without its kubelet nobody starts the agent again.
    let kubelet = cluster.away("n2/kubelet")?;
    let ctr = cluster.directory().join("bin/ctr").display().to_string();
    let agent = cluster.agent_container(second)?;
    let mut kill = cluster.inside(second, &ctr);
    kill.args(["--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", &agent]);
    ensure!(kill.status()?.success(), "killing the agent of {second}");
    wait_for("the cluster to notice", PATIENCE, || {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        Ok(cluster.kubectl(&["get", "node", second, "-o", path])? != "True")
    })?;
    let refused = uninstall(&cluster).err().context("uninstalled without an agent")?;
    println!("{refused:#}");
    let job = cluster.kubectl(&["-n", SYSTEM, "logs", "job/sluice-uninstall"])?;
    println!("the hook said: {job}");
    ensure!(job.contains("node n2") && job.contains("helm uninstall"), "no next step: {job}");
    ensure!(cluster.agents()?.len() == 2, "agents were deleted");
    ensure!(captures(&cluster, second)?, "the pod of {second} was let go");
    wire.seen()?.ensure_no_canary()?;
    drop(kubelet);
    // The node's agent is back: the same command does it now.
    wait_for("the agent to be back", PATIENCE * 2, || Ok(cluster.await_agents().is_ok()))?;
    println!("{}", uninstall(&cluster)?.trim());
    nothing_is_left(&cluster)?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        namespace.await_reached(from, to, &canary)?;
    }
    Ok(())
}
