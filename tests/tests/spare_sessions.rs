//! A burst of connections makes the agent keep sessions for the next one: how many, over what, and what they must not
//! hold up.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sluice_tests::{
    Family, Lab, MeshFile, NodeName, Process, World, policies,
    traffic::{Probe, Server, Service},
};

const PORT: u16 = 7000;
/// Connections that are opened at once.
const BURST: usize = 16;
/// Idle sessions that a burst makes the agent have: three for each that is open.
const SPARES: usize = 3 * BURST;
/// How long nothing must change until the agent is taken to be done.
const CALM: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(20);

fn lab(policies: &[(&str, &str)]) -> Result<Lab> {
    let world = World::builder().pod("client", NodeName::A).pod("server", NodeName::B).build()?;
    let mut mesh = MeshFile::of(&world);
    mesh.enrol("client", true)?;
    mesh.enrol("server", true)?;
    // Longer than anything here takes: an agent that ends in time did not wait for this.
    let ca = world.directory().join("ca");
    let settings = format!("ca: {{ mode: embedded, dir: {} }}\ndrainSeconds: 300", ca.display());
    Lab::start_set(world, mesh, policies, Some(&settings))
}

/// Opens connections that stay.
fn open(lab: &Lab, family: Family, count: usize) -> Result<Vec<Probe>> {
    let target = lab.pod("server")?.at(family, PORT);
    let client = &lab.pod("client")?.netns;
    let open =
        || -> Result<Vec<Probe>> { (0..count).map(|_| Probe::connect(client, target)).collect() };
    let mut probes = open()?;
    for probe in &mut probes {
        probe.echo(b"hello")?;
    }
    Ok(probes)
}

/// How many sessions lead from the client's pod to the server's port. The application's own connections end at the
/// agent.
fn sessions(lab: &Lab, family: Family) -> Result<usize> {
    let mut command = Command::new("ss");
    let target = lab.pod("server")?.at(family, PORT).to_string();
    command.args(["-Htn", "state", "established", "dst", &target]);
    let output = Process::output(&lab.pod("client")?.netns, &mut command)?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().count())
}

/// Waits until the number of sessions has not changed for a while, and returns it.
fn settled(lab: &Lab, family: Family) -> Result<usize> {
    let start = Instant::now();
    let (mut count, mut since) = (sessions(lab, family)?, Instant::now());
    while since.elapsed() < CALM {
        ensure!(start.elapsed() < PATIENCE, "the agent does not stop to make sessions: {count}");
        thread::sleep(Duration::from_millis(50));
        let now = sessions(lab, family)?;
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    Ok(count)
}

#[test]
fn a_burst_finds_the_sessions_that_the_one_before_made_the_agent_keep() -> Result<()> {
    let lab = lab(&[])?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    for family in Family::BOTH {
        let first = open(&lab, family, BURST)?;
        let kept = settled(&lab, family)?;
        println!("{family:?}: {kept} sessions after {BURST} connections");
        // On a machine that stands still for a moment, a part of the burst may count as one that was over.
        let expected = BURST + SPARES / 2..=BURST + SPARES;
        ensure!(expected.contains(&kept), "{kept} sessions for {BURST} connections");
        let mut second = open(&lab, family, kept - BURST)?;
        let after = settled(&lab, family)?;
        ensure!(after == kept, "{kept} sessions, and {after} when all were in use");
        for probe in &mut second {
            probe.echo(b"still there")?;
        }
        drop((first, second));
    }
    Ok(())
}

#[test]
fn a_few_connections_get_no_spares_and_neither_do_refused_ones() -> Result<()> {
    let deny = policies::deny("server", &["client"]);
    let lab = lab(&[])?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    for family in Family::BOTH {
        let few = open(&lab, family, 4)?;
        ensure!(settled(&lab, family)? == 4, "spares for four connections");
        drop(few);
    }
    lab.write_policy("deny.yaml", &deny)?;
    for family in Family::BOTH {
        let target = lab.pod("server")?.at(family, PORT);
        Probe::wait_until_refused(&lab.pod("client")?.netns, target, PATIENCE)?;
        for _ in 0..2 * BURST {
            Probe::ensure_refused(&lab.pod("client")?.netns, target)?;
        }
        let left = settled(&lab, family)?;
        ensure!(left <= 4, "{left} sessions for a client that is turned away");
    }
    Ok(())
}

#[test]
fn an_agent_ends_without_waiting_for_the_first_stream_of_a_spare() -> Result<()> {
    for node in [NodeName::B, NodeName::A] {
        let mut lab = lab(&[])?;
        let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
        let burst = open(&lab, Family::V4, BURST)?;
        let kept = settled(&lab, Family::V4)?;
        ensure!(kept > BURST, "{kept} sessions for {BURST} connections: there are no spares");
        drop(burst);
        lab.agent(node)?.terminate()?;
        lab.start_agent(node)?;
        lab.wait_until_settled(PATIENCE)?;
        let target = lab.pod("server")?.at(Family::V4, PORT);
        Probe::wait_until_served(&lab.pod("client")?.netns, target, PATIENCE)?;
    }
    Ok(())
}
