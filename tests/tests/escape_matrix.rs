//! No plaintext from an enrolled pod reaches a peer of the mesh, by any way that gets past a hook on `connect`.
//! `lab_controls` proves that each way works from a pod outside.

use std::{
    io::Write as _, net::SocketAddr, os::unix::process::CommandExt as _, process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Canary, Capture, Family, Lab, NodeName, Pod, Process, World,
    agent::sibling,
    escape::{self, Way, donor},
    traffic::{Probe, Server, Service},
    world::POD_DEVICE,
};

const PORT: u16 = 7000;
/// How long a packet that escapes may take to arrive.
const SETTLE: Duration = Duration::from_millis(30);

fn world() -> Result<World> {
    World::builder()
        .pod("client", NodeName::A)
        .pod("near", NodeName::A)
        .pod("far", NodeName::B)
        .build()
}

/// Returns the peers to watch, on the sender's own node and on the other one, each with its address.
fn targets(lab: &Lab) -> Result<Vec<(&Pod, SocketAddr)>> {
    let mut targets = Vec::new();
    for name in ["near", "far"] {
        let pod = lab.pod(name)?;
        targets.extend(Family::BOTH.map(|family| (pod, pod.at(family, PORT))));
    }
    Ok(targets)
}

fn serve(lab: &Lab) -> Result<[Server; 2]> {
    Ok([
        Server::on_port(&lab.pod("near")?.netns, PORT, Service::Echo)?,
        Server::on_port(&lab.pod("far")?.netns, PORT, Service::Echo)?,
    ])
}

/// Runs `send` with a canary of its own and checks that the peer's device never saw it.
fn ensure_kept_in(
    peer: &Pod,
    send: impl FnOnce(&Canary) -> Result<()>,
) -> Result<sluice_tests::Seen> {
    let canary = Canary::new()?;
    let capture = Capture::start(&peer.netns, POD_DEVICE, &canary)?;
    // A refusal and delivery over TLS are both right; the wire tells them from a leak.
    let outcome = send(&canary);
    std::thread::sleep(SETTLE);
    let seen = capture.seen()?;
    seen.ensure_no_canary().with_context(|| format!("sending ended with {outcome:?}"))?;
    Ok(seen)
}

#[test]
fn no_way_out_of_an_enrolled_pod_carries_plaintext_to_a_peer() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "near", "far"])?;
    let _servers = serve(&lab)?;
    let client = lab.pod("client")?;
    for (peer, target) in targets(&lab)? {
        for way in Way::ALL.into_iter().filter(|way| way.applies_to(target)) {
            ensure_kept_in(peer, |canary| way.send(client, target, canary))
                .with_context(|| format!("{way:?} to {target} ({})", peer.name))?;
        }
    }
    Ok(())
}

#[test]
fn no_mark_on_a_socket_passes_for_the_agent() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "near", "far"])?;
    let _servers = serve(&lab)?;
    let (client, far) = (lab.pod("client")?, lab.pod("far")?);
    for family in Family::BOTH {
        let target = far.at(family, PORT);
        for way in Way::marks() {
            ensure_kept_in(far, |canary| way.send(client, target, canary))
                .with_context(|| format!("{way:?} to {target}"))?;
        }
    }
    Ok(())
}

#[test]
fn ordinary_ways_to_connect_are_carried_not_refused() -> Result<()> {
    use escape::StreamWay;
    let lab = Lab::start(world()?, &["client", "near", "far"])?;
    let servers = serve(&lab)?;
    let client = lab.pod("client")?;
    for (peer, target) in targets(&lab)? {
        for way in [
            StreamWay::Connect,
            StreamWay::NonBlocking,
            StreamWay::FastOpen,
            StreamWay::FastOpenConnect,
            StreamWay::Ring,
            StreamWay::Multipath,
            StreamWay::V4Mapped,
            StreamWay::BoundToDevice,
        ] {
            let way = Way::Stream(way);
            if !way.applies_to(target) {
                continue;
            }
            let count = || servers.iter().map(|server| server.accepted().len()).sum::<usize>();
            let before = count();
            let seen = ensure_kept_in(peer, |canary| way.send(client, target, canary))?;
            let deadline = std::time::Instant::now() + Duration::from_secs(2);
            while count() == before && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            ensure!(count() == before + 1, "{way:?} to {target} did not arrive: {seen:?}");
        }
    }
    Ok(())
}

#[test]
fn a_socket_made_elsewhere_and_handed_in_does_not_escape() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "near", "far"])?;
    let _servers = serve(&lab)?;
    let client = lab.pod("client")?;
    for (peer, target) in targets(&lab)? {
        let donated = donor::receive_from_other_cgroup(&lab.world, client, target)?;
        ensure_kept_in(peer, |canary| donor::send_with(&donated, client, target, canary))
            .with_context(|| format!("donated socket to {target}"))?;
    }
    Ok(())
}

#[test]
fn a_connection_older_than_the_enrolment_carries_nothing_more() -> Result<()> {
    let mut lab = Lab::start(world()?, &[])?;
    let _servers = serve(&lab)?;
    let mut early = Vec::new();
    for (peer, target) in targets(&lab)? {
        let stream = escape::connect_early(lab.pod("client")?, target)?;
        let canary = Canary::new()?;
        let capture = Capture::start(&peer.netns, POD_DEVICE, &canary)?;
        escape::send_on(&stream, &canary)?;
        capture.wait_for_canary(Duration::from_secs(2)).context("before the enrolment")?;
        early.push((peer.name.clone(), target, stream));
    }
    lab.edit_mesh(|mesh| {
        ["client", "near", "far"].into_iter().try_for_each(|pod| mesh.enrol(pod, true))
    })?;
    for (peer, target, stream) in &early {
        ensure_kept_in(lab.pod(peer)?, |canary| escape::send_on(stream, canary))
            .with_context(|| format!("early connection to {target}"))?;
    }
    Ok(())
}

#[test]
fn no_user_is_exempt() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "near", "far"])?;
    let _servers = serve(&lab)?;
    let client = lab.pod("client")?;
    // 1337 is the user that Istio's and Merbridge's rules leave alone; 65534 is nobody.
    for user in [0, 1000, 1337, 65534] {
        for (peer, target) in targets(&lab)? {
            ensure_kept_in(peer, |canary| {
                let mut command = Command::new(sibling("sluice-lab")?);
                command.args(["send", &target.to_string(), canary.as_str()]).uid(user);
                let output = Process::output(&client.netns, &mut command)?;
                ensure!(output.stdout == canary.as_bytes(), "{output:?}");
                Ok(())
            })
            .with_context(|| format!("as user {user} to {target}"))?;
        }
    }
    Ok(())
}

/// Returns the addresses on the pod's own loopback that something listens on; here that is the agent alone.
fn loopback_listeners(pod: &Pod) -> Result<Vec<SocketAddr>> {
    pod.run(|| {
        let mut found = Vec::new();
        for (file, loopback) in [
            ("tcp", SocketAddr::from(([127, 0, 0, 1], 0))),
            ("tcp6", SocketAddr::from(([0, 0, 0, 0, 0, 0, 0, 1_u16], 0))),
        ] {
            let table = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
            for line in table.lines().skip(1) {
                let fields: Vec<_> = line.split_whitespace().collect();
                // Local address, remote address, state; 0A is LISTEN.
                let [_, local, _, "0A", ..] = fields.as_slice() else { continue };
                let (_, port) = local.rsplit_once(':').context("no port")?;
                let mut address = loopback;
                address.set_port(u16::from_str_radix(port, 16)?);
                found.push(address);
            }
        }
        Ok(found)
    })
}

#[test]
fn dialling_the_agents_own_ports_leads_nowhere() -> Result<()> {
    let mut lab = Lab::start(world()?, &["client", "near", "far"])?;
    let listeners = loopback_listeners(lab.pod("client")?)?;
    ensure!(listeners.len() >= 8, "two workers listen eight times, found {listeners:?}");
    let servers = serve(&lab)?;
    let before = lab.agent(NodeName::A)?.process()?.descriptors()?;
    for address in listeners {
        // A refused connection leads nowhere, too.
        let Ok(mut probe) = Probe::connect(&lab.pod("client")?.netns, address) else { continue };
        probe.stream().write_all(b"GET / HTTP/1.1\r\n\r\n").ok();
        let cut = probe.wait_for_cut(Duration::from_secs(3));
        cut.with_context(|| format!("dialling the agent at {address}"))?;
    }
    let reached: usize = servers.iter().map(|server| server.accepted().len()).sum();
    assert_eq!(reached, 0, "the agent relayed");
    let after = lab.agent(NodeName::A)?.process()?.descriptors()?;
    ensure!(after <= before + 2, "descriptors went from {before} to {after}");
    Ok(())
}

#[test]
fn destinations_that_the_mesh_does_not_know_are_reached_as_before() -> Result<()> {
    let mut lab = Lab::start(world()?, &["client", "near", "far"])?;
    lab.edit_mesh(|mesh| {
        mesh.enrol("far", false)?;
        mesh.pods.retain(|pod| pod.name != "far");
        Ok(())
    })?;
    let _servers = serve(&lab)?;
    let (client, far) = (lab.pod("client")?, lab.pod("far")?);
    for family in Family::BOTH {
        let target = far.at(family, PORT);
        for way in Way::ALL.into_iter().filter(|way| way.applies_to(target)) {
            if way.is_stopped_everywhere(target) {
                continue;
            }
            let canary = Canary::new()?;
            let capture = Capture::start(&far.netns, POD_DEVICE, &canary)?;
            way.send(client, target, &canary).with_context(|| format!("{way:?} to {target}"))?;
            capture.wait_for_canary(Duration::from_secs(2)).with_context(|| format!("{way:?}"))?;
        }
    }
    Ok(())
}
