//! Two pods of one node: their agent proves both by mutual TLS over the network between them, and then opens and carries
//! their connections in its memory, at two descriptors each.

use std::{
    io::{ErrorKind, Write as _},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;
use sluice_tests::{
    Canary, Capture, Family, Lab, MeshFile, NodeName, World,
    agent::sibling,
    full_size, policies,
    privilege::descriptor_limit,
    traffic::{Probe, Server, Service},
};

const PORT: u16 = 7300;
/// The promise: a change on disk reaches open connections within this.
const IN_FORCE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(3);
/// How long two pods of one node need not prove themselves again.
const PROOF_TIME: Duration = Duration::from_secs(30);
/// The most memory that the agent may use per connection that is open and idle.
const MEMORY_PER_CONNECTION: u64 = 16 << 10;

fn lab(policies: &[(&str, &str)]) -> Result<Lab> {
    let world = World::builder()
        .pod("friend", NodeName::A)
        .pod("stranger", NodeName::A)
        .pod("near", NodeName::A)
        .build()?;
    let mut mesh = MeshFile::of(&world);
    for pod in ["friend", "stranger", "near"] {
        mesh.enrol(pod, true)?;
    }
    Lab::start_with(world, mesh, policies)
}

/// Returns the connections that the agent lists, with both ends of each.
fn flows(lab: &mut Lab) -> Result<Vec<Value>> {
    let flows = lab.agent(NodeName::A)?.flows()?;
    let list = flows.as_array().or_else(|| flows.get("flows")?.as_array());
    Ok(list.context("no list of flows")?.clone())
}

#[test]
fn pods_of_one_node_are_proved_by_tls_and_then_nothing_is_on_the_network() -> Result<()> {
    for bridged in [false, true] {
        let builder = World::builder().pod("client", NodeName::A).pod("near", NodeName::A);
        let world = if bridged { builder.bridged() } else { builder }.build()?;
        let lab = Lab::start(world, &["client", "near"])?;
        let near = lab.pod("near")?;
        let _server = Server::on_port(&near.netns, PORT, Service::Echo)?;
        for family in Family::BOTH {
            let canary = Canary::new()?;
            let device = near.host_device();
            let opening = Capture::start(lab.world.node(NodeName::A), &device, &canary)?;
            let client = &lab.pod("client")?.netns;
            let mut probe = Probe::connect(client, near.at(family, PORT))?;
            probe.echo(canary.as_bytes())?;
            let place = format!("bridged: {bridged} {family:?}");
            opening.seen()?.ensure_tls_only(PORT).with_context(|| place.clone())?;
            // Time for the session to send what it still has: nothing may follow while the stream is carried in memory.
            std::thread::sleep(Duration::from_millis(100));
            let carrying = Capture::start(lab.world.node(NodeName::A), &device, &canary)?;
            for _ in 0..20 {
                probe.echo(&canary.as_bytes().repeat(100))?;
            }
            // Other connections need no other proof.
            Probe::ensure_served(client, near.at(family, PORT))?;
            let seen = carrying.seen()?;
            seen.ensure_no_canary().with_context(|| place.clone())?;
            let segments = seen.data_segments.get(&PORT).copied().unwrap_or(0);
            ensure!(segments == 0, "{place}: {segments} segments with payload: {seen:?}");
        }
    }
    Ok(())
}

/// A network that stops to let one pod reach another, as a NetworkPolicy may, is not passed by for long.
#[test]
fn a_proof_serves_for_half_a_minute_and_then_has_to_come_over_the_network_again() -> Result<()> {
    let lab = lab(&[])?;
    let near = lab.pod("near")?;
    let _server = Server::on_port(&near.netns, PORT, Service::Echo)?;
    let (client, target) = (&lab.pod("friend")?.netns, near.at(Family::V4, PORT));
    Probe::ensure_served(client, target)?;
    let start = Instant::now();
    let (node, pods) = (lab.world.node(NodeName::A), [near, lab.pod("friend")?]);
    for pod in pods {
        node.ip(&format!("route replace blackhole {}/32", pod.ip(Family::V4)))?;
    }
    Probe::ensure_served(client, target).context("while the proof serves")?;
    let refused = loop {
        if Probe::ensure_served(client, target).is_err() {
            break start.elapsed();
        }
        ensure!(start.elapsed() < PROOF_TIME + PATIENCE, "served without a network");
        std::thread::sleep(Duration::from_millis(200));
    };
    println!("refused {refused:?} after the network was cut");
    ensure!(refused + PATIENCE > PROOF_TIME, "a proof served for {refused:?} only");
    for pod in pods {
        node.ip(&format!("route replace {}/32 dev {}", pod.ip(Family::V4), pod.host_device()))?;
    }
    Probe::wait_until_served(client, target, Duration::from_secs(15))?;
    Ok(())
}

#[test]
fn both_ends_are_listed_as_local_with_proved_identities_and_counted() -> Result<()> {
    let mut lab = lab(&[("mtls.yaml", &policies::peer_authentication("STRICT"))])?;
    let near = lab.pod("near")?;
    let _server = Server::on_port(&near.netns, PORT, Service::Echo)?;
    let target = near.at(Family::V4, PORT);
    let mut probe = Probe::connect(&lab.pod("friend")?.netns, target)?;
    probe.echo(&[b'x'; 1000])?;
    let flows = flows(&mut lab)?;
    ensure!(flows.len() == 2, "both ends of one connection: {flows:?}");
    for flow in &flows {
        let text = |field: &str| flow.get(field).and_then(Value::as_str).unwrap_or_default();
        ensure!(text("transport") == "local", "{flow}");
        ensure!(text("source_identity").starts_with("spiffe://"), "{flow}");
        ensure!(text("destination_identity").starts_with("spiffe://"), "{flow}");
        ensure!(text("source") == probe.local()?.to_string(), "{flow}");
        for field in ["bytes_sent", "bytes_received"] {
            ensure!(flow.get(field).and_then(Value::as_u64) == Some(1000), "{flow}");
        }
    }
    let agent = lab.agent(NodeName::A)?;
    agent.wait_for_count("friend", "outbound_mtls", 1)?;
    agent.wait_for_count("near", "inbound_mtls", 1)
}

#[test]
fn policy_refuses_and_cuts_as_between_nodes() -> Result<()> {
    let lab = lab(&[])?;
    let near = lab.pod("near")?;
    let server = Server::on_port(&near.netns, PORT, Service::Echo)?;
    for family in Family::BOTH {
        let target = near.at(family, PORT);
        let [friend, stranger] = ["friend", "stranger"].map(|pod| {
            let mut probe = Probe::connect(&lab.pod(pod)?.netns, target)?;
            probe.echo(b"allowed")?;
            Ok::<_, anyhow::Error>(probe)
        });
        let (mut friend, mut stranger) = (friend?, stranger?);
        let start = Instant::now();
        lab.write_policy("allow.yaml", &policies::allow("near", &["friend"]))?;
        stranger.wait_for_cut(PATIENCE)?;
        let took = start.elapsed();
        ensure!(took <= IN_FORCE, "{family:?}: cut only after {took:?}");
        friend.echo(b"still allowed")?;
        let before = server.accepted().len();
        Probe::ensure_refused(&lab.pod("stranger")?.netns, target)?;
        ensure!(server.accepted().len() == before, "the application saw a refused connection");
        lab.remove_policy("allow.yaml")?;
        Probe::wait_until_served(&lab.pod("stranger")?.netns, target, PATIENCE)?;
        friend.echo(b"still allowed")?;
    }
    Ok(())
}

#[test]
fn connections_are_held_at_two_descriptors_each() -> Result<()> {
    let count = if full_size() { 5_000 } else { 500 };
    let count = count.min(descriptor_limit().saturating_sub(1_500) / 2);
    let mut lab = lab(&[])?;
    let near = lab.pod("near")?;
    let _server = Server::on_port(&near.netns, PORT, Service::Echo)?;
    let target = near.at(Family::V4, PORT);
    let agent = lab.agent(NodeName::A)?.process()?;
    let (before, memory) = (agent.descriptors()?, agent.resident_bytes()?);
    let mut command = Command::new(sibling("sluice-lab")?);
    command.args(["hold", &target.to_string(), "--count", &count.to_string(), "--seconds", "6"]);
    let mut holder = lab.world.start("friend", "holder", command)?;
    let held = holder.wait_for_line("holding", Duration::from_mins(2))?;
    let agent = lab.agent(NodeName::A)?.process()?;
    let used = u64::try_from(agent.descriptors()?.saturating_sub(before))?;
    let grown = agent.resident_bytes()?.saturating_sub(memory) / count;
    println!("{held}: {used} descriptors, {grown} bytes of memory for each connection");
    ensure!(held.contains(&format!("holding {count} of {count}")), "{held}");
    // The rest is for sessions that wait for their next stream, which all connections share.
    ensure!(used <= 2 * count + 100, "{used} descriptors for {count} connections");
    ensure!(grown <= MEMORY_PER_CONNECTION || count < 500, "{grown} bytes for each");
    let done = holder.wait_for_line("done", Duration::from_mins(2))?;
    ensure!(done.contains("done: 0 failed"), "{done}");
    Ok(())
}

#[test]
fn a_stalled_reader_stops_the_sender_and_the_agent_neither_grows_nor_spins() -> Result<()> {
    let mut lab = lab(&[])?;
    let near = lab.pod("near")?;
    let _stall = Server::on_port(&near.netns, PORT, Service::Stall)?;
    let mut sender = Probe::connect(&lab.pod("friend")?.netns, near.at(Family::V4, PORT))?;
    sender.stream().set_nonblocking(true)?;
    let memory = lab.agent(NodeName::A)?.process()?.resident_bytes()?;
    let (block, start) = (vec![b'x'; 1 << 16], Instant::now());
    let mut sent = 0_u64;
    while start.elapsed() < Duration::from_secs(2) {
        match sender.stream().write(&block) {
            Ok(length) => sent += u64::try_from(length)?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error).context("upload"),
        }
    }
    ensure!(sent < 64 << 20, "{sent} bytes were taken from a sender whose reader stalls");
    let agent = lab.agent(NodeName::A)?.process()?;
    let (used, start) = (agent.cpu_time()?, Instant::now());
    std::thread::sleep(Duration::from_secs(1));
    let busy = agent.cpu_time()?.saturating_sub(used).as_secs_f64() / start.elapsed().as_secs_f64();
    let growth = agent.resident_bytes()?.saturating_sub(memory);
    println!("{sent} bytes taken, {growth} bytes of growth, {busy:.3} of a core while stalled");
    ensure!(growth < 8 << 20, "the agent grew by {growth} bytes");
    ensure!(busy < 0.1, "the agent uses {busy:.2} of a core for a connection that stands still");
    Ok(())
}

#[test]
fn without_descriptors_connections_fail_at_once_and_open_ones_go_on() -> Result<()> {
    let mut lab = lab(&[])?;
    let near = lab.pod("near")?;
    let _server = Server::on_port(&near.netns, PORT, Service::Echo)?;
    let target = near.at(Family::V4, PORT);
    let client = lab.pod("friend")?.netns.clone();
    let mut honest = Probe::connect(&client, target)?;
    honest.echo(b"before")?;
    let agent = lab.agent(NodeName::A)?.process()?;
    let full = getrlimit(Resource::Nofile);
    let scarce =
        Rlimit { current: Some(u64::try_from(agent.descriptors()?)? + 40), maximum: full.maximum };
    let pid = Pid::from_raw(i32::try_from(agent.id())?).context("pid")?;
    prlimit(Some(pid), Resource::Nofile, scarce).context("prlimit")?;
    let mut held = Vec::new();
    let mut slowest = Duration::ZERO;
    let mut refused = 0;
    for _ in 0..40 {
        let start = Instant::now();
        match Probe::connect(&client, target).and_then(|mut probe| {
            probe.echo(b"served")?;
            Ok(probe)
        }) {
            Ok(probe) => held.push(probe),
            Err(_) => refused += 1,
        }
        slowest = slowest.max(start.elapsed());
    }
    println!("{} held, {refused} refused, the slowest outcome after {slowest:?}", held.len());
    ensure!(refused > 0 && held.len() > 5, "{} held, {refused} refused", held.len());
    ensure!(slowest < Duration::from_secs(1), "an outcome took {slowest:?}");
    let agent = lab.agent(NodeName::A)?.process()?;
    agent.wait_for_line("descriptors in use", Duration::from_secs(5)).context("no reason given")?;
    honest.echo(b"during")?;
    drop(held);
    prlimit(Some(pid), Resource::Nofile, full).context("prlimit")?;
    Probe::wait_until_served(&client, target, Duration::from_secs(5))?;
    honest.echo(b"after")
}
