//! Pods enter and leave the mesh while their programs run: what is on the wire changes, the programs
//! and what they see of each other do not.

use std::{
    fs,
    net::TcpListener,
    process::Command,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sluice_tests::{
    Canary, Capture, Family, Lab, MeshFile, Netns, NodeName, Process, World, policies,
    traffic::{Probe, Server, Service, flood},
};

const PORT: u16 = 8000;

fn world() -> Result<World> {
    World::builder().pod("client", NodeName::A).pod("server", NodeName::B).build()
}

/// Starts `python3 -m http.server`, which serves the canary and logs who asked.
fn file_server(lab: &Lab, canary: &Canary) -> Result<Process> {
    let files = lab.world.directory().join("files");
    fs::create_dir_all(&files)?;
    fs::write(files.join("canary"), canary.as_str())?;
    let mut command = Command::new("python3");
    command.args(["-u", "-m", "http.server", "--bind", "::", &PORT.to_string(), "--directory"]);
    let mut server = lab.world.start("server", "file-server", {
        command.arg(&files);
        command
    })?;
    server.wait_for_line("Serving HTTP", Duration::from_secs(10))?;
    Ok(server)
}

fn curl(lab: &Lab, family: Family) -> Result<String> {
    let target = lab.pod("server")?.at(family, PORT);
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "5", "-g", &format!("http://{target}/canary")]);
    let output = Process::output(&lab.pod("client")?.netns, &mut curl)?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn enrolling_live_replaces_plaintext_by_tls_on_the_same_port_and_leaving_brings_it_back()
-> Result<()> {
    let mut lab = Lab::start(world()?, &[])?;
    let canary = Canary::new()?;
    let mut server = file_server(&lab, &canary)?;
    for enrolled in [false, true, false] {
        lab.edit_mesh(|mesh| {
            mesh.enrol("client", enrolled)?;
            mesh.enrol("server", enrolled)
        })?;
        for family in Family::BOTH {
            let capture = Capture::between_nodes(&lab.world, &canary)?;
            assert_eq!(curl(&lab, family)?, canary.as_str());
            if enrolled {
                capture.seen()?.ensure_tls_only(PORT).with_context(|| format!("{family:?}"))?;
            } else {
                let seen = capture.wait_for_canary(Duration::from_secs(2))?;
                assert_eq!(seen.tls_on(PORT), 0, "{family:?}");
            }
        }
        ensure!(server.is_running()?, "the server did not survive");
    }
    for family in Family::BOTH {
        let client = lab.pod("client")?.ip(family).to_string();
        let asked = server.log().lines().filter(|line| line.contains(&client)).count();
        assert_eq!(asked, 3, "requests from {client} in:\n{}", server.log());
    }
    Ok(())
}

#[test]
fn a_pod_alone_in_the_mesh_still_speaks_plaintext_with_the_world_outside() -> Result<()> {
    for enrolled in ["client", "server"] {
        let lab = Lab::start(world()?, &[enrolled])?;
        let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
        for family in Family::BOTH {
            let canary = Canary::new()?;
            let capture = Capture::between_nodes(&lab.world, &canary)?;
            let target = lab.pod("server")?.at(family, PORT);
            Probe::connect(&lab.pod("client")?.netns, target)?.echo(canary.as_bytes())?;
            let seen = capture.wait_for_canary(Duration::from_secs(2))?;
            assert_eq!(seen.tls_on(PORT), 0, "only {enrolled} is enrolled, {family:?}");
        }
    }
    Ok(())
}

#[test]
fn both_ends_see_each_others_true_addresses() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "server"])?;
    let (client, server) = (lab.pod("client")?, lab.pod("server")?);
    let listening = Server::on_port(&server.netns, PORT, Service::Addresses)?;
    let targets = Family::BOTH.map(|family| server.at(family, PORT));
    let result = flood(&client.netns, &targets, 60, 2)?;
    assert_eq!(result.right.load(Ordering::Relaxed), 60, "{result:?}");
    assert_eq!(result.wrong_peer_name.load(Ordering::Relaxed), 0, "{result:?}");
    for accepted in listening.accepted() {
        assert_eq!(accepted.peer, accepted.peer_name);
        assert!(client.addresses.contains(&accepted.peer.ip()), "{accepted:?}");
    }
    Ok(())
}

#[test]
fn connections_that_stay_inside_a_pod_are_left_alone() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "server"])?;
    let server = lab.pod("server")?;
    let listening = Server::on_port(&server.netns, PORT, Service::Echo)?;
    for family in Family::BOTH {
        let loopback: std::net::IpAddr = match family {
            Family::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
            Family::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        for target in [(loopback, PORT).into(), server.at(family, PORT)] {
            let mut probe = Probe::connect(&server.netns, target)?;
            probe.echo(b"to myself")?;
            let last = listening.accepted().into_iter().next_back().context("none accepted")?;
            assert_eq!(last.peer, probe.local()?);
            assert_eq!(probe.peer()?, target);
        }
    }
    Ok(())
}

#[test]
fn an_application_gets_whatever_port_it_is_configured_with() -> Result<()> {
    let lab = Lab::start(world()?, &["client", "server"])?;
    for family in Family::BOTH {
        let refused = lab.pod("server")?.run(|| {
            let listen = |port: &u16| TcpListener::bind((family.unspecified(), *port));
            Ok((1024..=u16::MAX).filter(|port| listen(port).is_err()).collect::<Vec<_>>())
        })?;
        ensure!(refused.is_empty(), "{family:?}: these are taken: {refused:?}");
    }
    Ok(())
}

#[test]
fn plaintext_is_counted_while_it_is_open() -> Result<()> {
    let world = world()?;
    let mut mesh = MeshFile::of(&world);
    mesh.enrol("client", true)?;
    mesh.enrol("server", true)?;
    let disable = policies::peer_authentication("DISABLE");
    let mut lab = Lab::start_with(world, mesh, &[("mtls.yaml", &disable)])?;
    let server = lab.pod("server")?;
    let _server = Server::on_port(&server.netns, PORT, Service::Echo)?;
    let mut probe = Probe::connect(&lab.pod("client")?.netns, server.at(Family::V4, PORT))?;
    probe.echo(b"hello")?;
    lab.agent(NodeName::A)?.wait_for_count("client", "outbound_plaintext", 1)?;
    lab.agent(NodeName::B)?.wait_for_count("server", "inbound_plaintext", 1)?;
    probe.echo(b"still open")
}

#[test]
fn what_is_dropped_for_no_pod_is_reported() -> Result<()> {
    let builder = World::builder().pod("client", NodeName::A);
    let world = builder.pod_with_addresses("server", NodeName::B, 2).build()?;
    let mut mesh = MeshFile::of(&world);
    let primary = Family::BOTH.map(|family| world.pod("server").map(|pod| pod.ip(family)));
    let primary = primary.into_iter().collect::<Result<Vec<_>>>()?;
    let listed = &mut mesh.pod("server")?.addresses;
    let unknown: Vec<_> = listed.extract_if(.., |ip| !primary.contains(ip)).collect();
    assert_eq!((listed.len(), unknown.len()), (2, 2), "one of each family");
    mesh.enrol("server", true)?;
    let mut lab = Lab::start_with(world, mesh, &[])?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    let client = lab.pod("client")?.netns.clone();
    for ip in primary {
        Probe::ensure_served(&client, (ip, PORT).into())?;
    }
    let table = lab.agent(NodeName::B)?.status_table()?;
    ensure!(!table.contains("that no pod has"), "{table}");

    for ip in unknown {
        Probe::ensure_refused(&client, (ip, PORT).into())?;
    }
    let status = lab.agent(NodeName::B)?.status()?;
    let dropped = status.pointer("/unattributed/inbound_dropped").and_then(Value::as_u64);
    ensure!(dropped >= Some(2), "{status:#}");
    let table = lab.agent(NodeName::B)?.status_table()?;
    ensure!(table.contains("requests to connect to an address that no pod has"), "{table}");
    Ok(())
}

/// How many open connections a namespace has an end of.
fn open_connections(netns: &Netns) -> Result<usize> {
    let mut command = Command::new("ss");
    let output = Process::output(netns, command.args(["-Htn", "state", "established"]))?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().count())
}

#[test]
fn the_sessions_to_a_pod_end_when_it_leaves() -> Result<()> {
    let mut lab = Lab::start(world()?, &["client", "server"])?;
    let server = lab.pod("server")?;
    let service = Server::on_port(&server.netns, PORT, Service::Echo)?;
    for family in Family::BOTH {
        Probe::connect(&lab.pod("client")?.netns, server.at(family, PORT))?.echo(b"hello")?;
    }
    drop(service);
    // They wait for another connection.
    ensure!(open_connections(&server.netns)? >= 2, "no session is kept");
    lab.edit_mesh(|mesh| mesh.enrol("server", false))?;
    let until = Instant::now() + Duration::from_secs(10);
    while open_connections(&lab.pod("server")?.netns)? > 0 {
        ensure!(Instant::now() < until, "the agent still has connections of a pod that has left");
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
