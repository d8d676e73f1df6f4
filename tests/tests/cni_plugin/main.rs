//! The plugin as runtimes call it, with real agents: a pod of the mesh does not start before it is
//! captured, and nothing ever keeps a pod from ending.

mod lab;
mod rush;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{
    Canary, Capture, NodeName,
    traffic::{Probe, Server, Service},
};

use self::lab::Node;

const PORT: u16 = 7000;
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// What the plugin may take without an agent.
const AGENT_AWAY: Duration = Duration::from_secs(3);

/// Fails unless the pod's first connection, which sends the canary, is TLS on the wire.
fn first_connection_is_captured(node: &Node, _server: &Server) -> Result<()> {
    let canary = Canary::new()?;
    let capture = Capture::between_nodes(&node.lab.world, &canary)?;
    Probe::connect(&node.sandbox, node.server(PORT)?)?.echo(canary.as_bytes())?;
    capture.seen()?.ensure_tls_only(PORT)
}

/// Adds the pod as the kubelet does: a failed ADD is undone and repeated.
fn add_again_and_again(node: &Node) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let answer = node.tool("add")?;
        if answer.succeeded {
            return Ok(());
        }
        answer.failed_saying("has not decided on this pod yet")?;
        ensure!(Instant::now() < deadline, "{answer:?}");
        node.tool("del")?.ok()?;
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_pod_of_the_mesh_is_captured_from_its_first_connection_in_every_version() -> Result<()> {
    let mut node = Node::start()?;
    let server = Server::on_port(&node.lab.pod("server")?.netns, PORT, Service::Echo)?;
    node.list_pod(true)?;
    for version in VERSIONS {
        node.write_list(version)?;
        let result = node.tool("add")?.result()?;
        assert_eq!(result["cniVersion"], version);
        assert_eq!(result["ips"][0]["address"], "10.77.1.200/26", "{result}");
        ensure!(result["interfaces"].as_array().is_some_and(|all| all.len() >= 2), "{result}");
        first_connection_is_captured(&node, &server)?;
        if !version.starts_with("0.3.") {
            node.tool("check")?.ok()?;
        }
        node.tool("status")?.ok()?;
        node.tool("del")?.ok()?;
        node.tool("del")?.ok()?;
    }
    Ok(())
}

#[test]
fn without_an_agent_no_pod_starts_and_every_pod_ends() -> Result<()> {
    let mut node = Node::start()?;
    let server = Server::on_port(&node.lab.pod("server")?.netns, PORT, Service::Echo)?;
    node.list_pod(true)?;
    node.write_list("1.1.0")?;
    node.tool("add")?.ok()?;
    node.lab.agent(NodeName::A)?.kill9()?;
    node.tool("status")?.failed_saying("the agent is away")?;
    node.tool("check")?.failed_saying("no agent answers")?;
    let start = Instant::now();
    node.tool("del")?.ok()?;
    node.tool("add")?.failed_saying("no agent answers")?;
    ensure!(start.elapsed() < AGENT_AWAY, "{:?}", start.elapsed());
    // A failed ADD is followed by DEL, without which the only address would stay taken.
    node.tool("del")?.ok()?;

    node.lab.start_agent(NodeName::A)?;
    add_again_and_again(&node)?;
    first_connection_is_captured(&node, &server)?;
    node.tool("del")?.ok()?;
    Ok(())
}

#[test]
fn an_unknown_pod_is_put_off_until_the_mesh_knows_it() -> Result<()> {
    let mut node = Node::start()?;
    let server = Server::on_port(&node.lab.pod("server")?.netns, PORT, Service::Echo)?;
    node.write_list("1.1.0")?;
    let start = Instant::now();
    node.tool("add")?.failed_saying("the mesh file lists no pod")?;
    ensure!(start.elapsed() < Duration::from_secs(11), "{:?}", start.elapsed());
    node.tool("del")?.ok()?;
    node.list_pod(true)?;
    node.tool("add")?.ok()?;
    first_connection_is_captured(&node, &server)?;
    node.tool("del")?.ok()?;
    Ok(())
}

#[test]
fn pods_outside_the_mesh_start_and_stay_outside() -> Result<()> {
    let mut node = Node::start()?;
    let _server = Server::on_port(&node.lab.pod("near")?.netns, PORT, Service::Echo)?;
    node.list_pod(false)?;
    node.write_list("1.1.0")?;
    wait_until_listed(&mut node)?;
    node.tool("add")?.ok()?;
    node.tool("check")?.ok()?;
    let target = node.lab.pod("near")?.at(sluice_tests::Family::V4, PORT);
    Probe::ensure_served(&node.sandbox, target)?;
    node.tool("del")?.ok()?;
    // These pods start without an agent, too.
    node.lab.agent(NodeName::A)?.kill9()?;
    for arguments in [
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=coredns-1",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=sluice-system;K8S_POD_NAME=sluice-agent-x7",
    ] {
        node.tool_for("add", arguments)?.ok()?;
        node.tool_for("del", arguments)?.ok()?;
    }
    Ok(())
}

/// Waits until the agent has taken the list of pods over.
fn wait_until_listed(node: &mut Node) -> Result<()> {
    let agent = node.lab.agent(NodeName::A)?;
    let deadline = Instant::now() + Duration::from_secs(5);
    let version =
        |status: &Value| status.pointer("/source/version").and_then(Value::as_u64).unwrap_or(0);
    while version(&agent.status()?) < 2 {
        ensure!(Instant::now() < deadline, "the mesh file was not taken over");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn check_finds_a_way_past_the_guard() -> Result<()> {
    let mut node = Node::start()?;
    node.list_pod(true)?;
    node.write_list("1.1.0")?;
    node.tool("add")?.ok()?;
    node.tool("check")?.ok()?;
    // An audit may mend this before CHECK looks, but not three times in a row.
    let mut answers = Vec::new();
    for attempt in 0..3 {
        let node_path = node.lab.world.node(NodeName::A).path();
        node.sandbox.ip(&format!(
            "link add extra{attempt} type veth peer name xx{attempt} netns {}\n",
            node_path.display()
        ))?;
        answers.push(node.tool("check")?);
    }
    let found =
        answers.iter().any(|answer| answer.failed_saying("veth pairs have changed").is_ok());
    ensure!(found, "{answers:?}");
    node.tool("del")?.ok()?;
    Ok(())
}

#[test]
fn a_sandbox_that_goes_without_del_leaves_nothing_that_keeps_the_next_one_out() -> Result<()> {
    let mut node = Node::start()?;
    let server = Server::on_port(&node.lab.pod("server")?.netns, PORT, Service::Echo)?;
    node.list_pod(true)?;
    node.write_list("1.1.0")?;
    node.tool("add")?.ok()?;
    // An agent that was started since knows nothing of the attachment.
    node.lab.agent(NodeName::A)?.kill9()?;
    node.lab.start_agent(NodeName::A)?;
    node.tool("del")?.ok()?;
    add_again_and_again(&node)?;
    first_connection_is_captured(&node, &server)?;
    node.collect_garbage(&json!([]))?;
    node.tool("check")?.ok()?;
    first_connection_is_captured(&node, &server)?;
    // The tool sends null for a list that it does not have; the plugin then removes nothing.
    node.tool("gc")?.failed_saying("no list of valid attachments")?;
    node.tool("del")?.ok()?;
    Ok(())
}
