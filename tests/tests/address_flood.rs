//! Very many connections over few ports: never a wrong destination, never a wrong client.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sluice_tests::{
    Family, Lab, NodeName, World, full_size,
    traffic::{Probe, Server, Service, flood},
};

const PORTS: std::ops::Range<u16> = 7200..7208;

#[test]
fn connections_that_reuse_ports_keep_their_destinations_and_clients() -> Result<()> {
    let world = World::builder()
        .pod("client", NodeName::A)
        .pod_with_addresses("server", NodeName::B, 8)
        .build()?;
    let mut lab = Lab::start(world, &["client", "server"])?;
    let (client, server) = (lab.pod("client")?, lab.pod("server")?);
    let mut servers = Vec::new();
    for port in PORTS {
        servers.push(Server::on_port(&server.netns, port, Service::Addresses)?);
    }
    let targets: Vec<_> =
        server.addresses.iter().flat_map(|ip| PORTS.map(|port| (*ip, port).into())).collect();
    // Two thousand ports for all connections.
    client.netns.sysctl("net/ipv4/ip_local_port_range", "20000 21999")?;
    let total = if full_size() { 200_000 } else { 6_000 };
    let start = Instant::now();
    let result = flood(&client.netns, &targets, total, 8)?;
    println!(
        "{total} connections to {} targets in {:?}: {result:?}",
        targets.len(),
        start.elapsed()
    );
    ensure!(result.wrong.load(Ordering::Relaxed) == 0, "{result:?}");
    ensure!(result.wrong_peer_name.load(Ordering::Relaxed) == 0, "{result:?}");
    ensure!(result.failed.load(Ordering::Relaxed) == 0, "{result:?}");
    assert_eq!(result.right.load(Ordering::Relaxed), total);
    drop(servers);
    lab.agent(NodeName::A)?.wait_for_count("client", "outbound_mtls", total)
}

#[test]
fn short_connections_do_not_use_up_the_ports_beside_a_server() -> Result<()> {
    let world = World::builder().pod("client", NodeName::A).pod("server", NodeName::B).build()?;
    let lab = Lab::start(world, &["client", "server"])?;
    let (client, server) = (lab.pod("client")?, lab.pod("server")?);
    // The server's agent connects to the application from these ports. Whoever closes first keeps a port for a minute.
    server.netns.sysctl("net/ipv4/ip_local_port_range", "20000 20199")?;
    let _server = Server::on_port(&server.netns, 7300, Service::Echo)?;
    for family in Family::BOTH {
        for number in 0..500 {
            let reached = Probe::attempt(&client.netns, server.at(family, 7300))?;
            ensure!(reached.is_ok(), "{family:?}, connection {number}: {reached:?}");
            // Over IPv4 the kernel reuses such a port after a second, which is how long the ports must last.
            thread::sleep(Duration::from_millis(8));
        }
    }
    Ok(())
}
