//! The lab itself, without any mesh: it sees what it claims to see, and it leaves nothing behind.
//! Every leak test relies on these tests.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Canary, Capture, Family, Netns, NodeName, Process, World,
    escape::{self, Way, donor},
    traffic::{Probe, Server, Service, bytes, bytes::Exchange, flood},
};

const PORT: u16 = 7000;

fn two_pods() -> Result<World> {
    World::builder().pod("client", NodeName::A).pod("server", NodeName::B).build()
}

#[test]
fn without_a_mesh_the_canary_is_on_the_wire() -> Result<()> {
    let world = two_pods()?;
    let server = Server::on_port(&world.pod("server")?.netns, PORT, Service::Echo)?;
    for family in Family::BOTH {
        let canary = Canary::new()?;
        let capture = Capture::between_nodes(&world, &canary)?;
        let client = world.pod("client")?;
        let mut probe = Probe::connect(&client.netns, world.pod("server")?.at(family, PORT))?;
        probe.echo(canary.as_bytes())?;
        let seen = capture.wait_for_canary(Duration::from_secs(2))?;
        ensure!(seen.canaries == 2 && seen.lost == 0, "there and back: {seen:?}");
        ensure!(seen.tls_on(PORT) == 0, "{seen:?}");
        let accepted = server.accepted().into_iter().next_back().context("nothing accepted")?;
        assert_eq!(accepted.peer, probe.local()?, "{family:?}");
        assert_eq!(accepted.peer.ip(), client.ip(family), "the first address is the source");
    }
    Ok(())
}

#[test]
fn a_canary_split_over_two_segments_is_still_found() -> Result<()> {
    let world = two_pods()?;
    let _server = Server::on_port(&world.pod("server")?.netns, PORT, Service::Echo)?;
    let canary = Canary::new()?;
    let capture = Capture::between_nodes(&world, &canary)?;
    let target = world.pod("server")?.at(Family::V4, PORT);
    let mut probe = Probe::connect(&world.pod("client")?.netns, target)?;
    let (head, tail) = canary.as_bytes().split_at(11);
    probe.echo(head)?;
    probe.echo(tail)?;
    assert_eq!(capture.seen()?.canaries, 2);
    Ok(())
}

#[test]
fn pods_of_one_node_reach_each_other_routed_and_bridged() -> Result<()> {
    for bridged in [false, true] {
        let builder = World::builder()
            .pod("client", NodeName::A)
            .pod("near", NodeName::A)
            .pod("far", NodeName::B);
        let world = if bridged { builder.bridged() } else { builder }.build()?;
        for (name, family) in [("near", Family::V4), ("near", Family::V6), ("far", Family::V6)] {
            let pod = world.pod(name)?;
            let _server = Server::on_port(&pod.netns, PORT, Service::Echo)?;
            let client = &world.pod("client")?.netns;
            Probe::connect(client, pod.at(family, PORT))?.echo(b"hello")?;
        }
    }
    Ok(())
}

#[test]
fn every_way_out_works_from_a_pod_outside_the_mesh() -> Result<()> {
    let world = two_pods()?;
    let (client, server) = (world.pod("client")?, world.pod("server")?);
    let _server = Server::on_port(&server.netns, PORT, Service::Echo)?;
    for family in Family::BOTH {
        let target = server.at(family, PORT);
        for way in Way::ALL.into_iter().filter(|way| way.applies_to(target)) {
            let canary = Canary::new()?;
            let capture = Capture::between_nodes(&world, &canary)?;
            way.send(client, target, &canary).with_context(|| format!("{way:?} {family:?}"))?;
            let seen = capture.wait_for_canary(Duration::from_secs(2));
            seen.with_context(|| format!("{way:?} to {target}"))?;
        }
        let canary = Canary::new()?;
        let capture = Capture::between_nodes(&world, &canary)?;
        let donated = donor::receive_from_other_cgroup(&world, client, target)?;
        donor::send_with(&donated, client, target, &canary)?;
        capture.wait_for_canary(Duration::from_secs(2)).context("donated socket")?;
        let canary = Canary::new()?;
        let capture = Capture::between_nodes(&world, &canary)?;
        escape::send_on(&escape::connect_early(client, target)?, &canary)?;
        capture.wait_for_canary(Duration::from_secs(2)).context("early connection")?;
    }
    Ok(())
}

#[test]
fn exchanges_without_a_mesh_are_exact() -> Result<()> {
    use std::sync::{Arc, atomic::Ordering};
    let world = two_pods()?;
    let tally = Arc::new(bytes::Tally::default());
    let service = Service::Bytes(Arc::clone(&tally));
    let server = world.pod("server")?;
    let _server = Server::on_port(&server.netns, PORT, service)?;
    for family in Family::BOTH {
        let plans = (0..50).map(|number| Exchange::numbered(number, 100_000));
        let client = &world.pod("client")?.netns;
        bytes::exchange_all(client, server.at(family, PORT), plans, 8, &tally)?;
    }
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(tally.wrong.load(Ordering::Relaxed), 0);
    assert_eq!(tally.exact.load(Ordering::Relaxed), 100);
    Ok(())
}

#[test]
fn a_flood_without_a_mesh_sees_its_own_addresses() -> Result<()> {
    use std::sync::atomic::Ordering;
    let world = World::builder()
        .pod("client", NodeName::A)
        .pod_with_addresses("server", NodeName::B, 4)
        .build()?;
    let (client, server) = (world.pod("client")?, world.pod("server")?);
    let _server = Server::on_port(&server.netns, PORT, Service::Addresses)?;
    client.netns.sysctl("net/ipv4/ip_local_port_range", "20000 20999")?;
    let targets: Vec<_> = server.addresses.iter().map(|ip| (*ip, PORT).into()).collect();
    assert_eq!(targets.len(), 8);
    let result = flood(&client.netns, &targets, 2000, 4)?;
    assert_eq!(result.right.load(Ordering::Relaxed), 2000, "{result:?}");
    Ok(())
}

#[test]
fn nothing_is_left_when_a_world_is_dropped() -> Result<()> {
    let (directory, pid, names) = {
        let world = two_pods()?;
        let mut sleeper = Command::new("sleep");
        sleeper.arg("1000");
        let process = world.start("client", "sleeper", sleeper)?;
        let names: Vec<_> = world.namespaces().map(Netns::path).collect();
        assert!(names.iter().all(|path| path.exists()));
        (world.directory().to_owned(), process.id(), names)
    };
    assert!(!directory.exists());
    assert!(names.iter().all(|path| !path.exists()), "{names:?}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    Ok(())
}

#[test]
fn what_a_killed_run_leaves_is_removed_by_the_next() -> Result<()> {
    let world = two_pods()?;
    // A world whose owner is dead, with a process, a namespace and a directory.
    let mut sleeper = Command::new("sleep");
    sleeper.arg("1000");
    let mut orphan = Process::start(world.directory(), world.node(NodeName::A), "o", sleeper)?;
    let dead = Path::new("/run/sluice-lab").join(format!("{}-dead", world.id()));
    fs::create_dir_all(&dead)?;
    fs::write(dead.join("owner"), "1 0\n")?;
    fs::copy(world.directory().join("processes"), dead.join("processes"))?;
    fs::create_dir_all(dead.join("netns"))?;
    Netns::create(&dead.join("netns/node"))?;
    sluice_tests::cleanup::remove_leftovers()?;
    assert!(!dead.exists());
    assert!(!orphan.is_running()?);
    assert!(world.directory().exists(), "a living world was removed");
    Ok(())
}
