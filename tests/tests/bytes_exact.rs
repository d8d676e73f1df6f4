//! Every byte arrives once, in order, in both directions, and every ending arrives as it was made:
//! half-close as half-close, reset as reset.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sluice_tests::{
    Family, Lab, NodeName, World, full_size,
    traffic::{
        Server, Service,
        bytes::{Exchange, Tally, exchange_all},
    },
};

const PORT: u16 = 7100;

struct Size {
    connections: u64,
    mean: u64,
    concurrent: usize,
}

/// Returns the numbers per family. At full size, both families together make 10 GB, both ways.
fn size() -> Size {
    if full_size() {
        Size { connections: 700, mean: 7_500_000, concurrent: 16 }
    } else {
        Size { connections: 150, mean: 200_000, concurrent: 16 }
    }
}

/// Returns how many bytes were compared.
fn run(lab: &Lab, client: &str, server: &str) -> Result<u64> {
    let tally = Arc::new(Tally::default());
    let service = Service::Bytes(Arc::clone(&tally));
    let _server = Server::on_port(&lab.pod(server)?.netns, PORT, service)?;
    let size = size();
    for family in Family::BOTH {
        let plans = (0..size.connections).map(|number| Exchange::numbered(number, size.mean));
        let netns = &lab.pod(client)?.netns;
        exchange_all(netns, lab.pod(server)?.at(family, PORT), plans, size.concurrent, &tally)?;
    }
    let expected = size.connections * 2;
    // The clients are done; a server may still be reading the end of a stream.
    let deadline = Instant::now() + Duration::from_secs(5);
    let finished = || tally.exact.load(Ordering::Relaxed) + tally.wrong.load(Ordering::Relaxed);
    while finished() < expected && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let bytes = tally.bytes.load(Ordering::Relaxed);
    ensure!(
        tally.exact.load(Ordering::Relaxed) == expected,
        "{client} to {server}: {tally:?} of {expected}"
    );
    Ok(bytes)
}

#[test]
fn every_byte_and_every_ending_arrives_between_nodes() -> Result<()> {
    let world = World::builder().pod("client", NodeName::A).pod("server", NodeName::B).build()?;
    let mut lab = Lab::start(world, &["client", "server"])?;
    let start = Instant::now();
    let bytes = run(&lab, "client", "server")?;
    println!("{bytes} bytes compared in {:?}", start.elapsed());
    let agent = lab.agent(NodeName::A)?;
    agent.wait_for_count("client", "captured", size().connections * 2)?;
    ensure!(agent.counter("client", "outbound_plaintext")? == 0, "{}", agent.status()?);
    ensure!(!full_size() || bytes >= 10_000_000_000, "only {bytes} bytes at full size");
    Ok(())
}

#[test]
fn every_byte_and_every_ending_arrives_on_one_node_and_in_plaintext() -> Result<()> {
    let world = World::builder()
        .pod("client", NodeName::A)
        .pod("near", NodeName::A)
        .pod("outside", NodeName::B)
        .build()?;
    let lab = Lab::start(world, &["client", "near"])?;
    run(&lab, "client", "near")?;
    // In through the inbound listener in plaintext, and out to a pod that the mesh knows but that
    // is not enrolled.
    run(&lab, "outside", "near")?;
    run(&lab, "client", "outside")?;
    Ok(())
}
