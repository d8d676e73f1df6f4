//! `helm upgrade` under load: agents are replaced node by node, and the hooks are never absent.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{Canary, Cluster, cluster::NODES, syscalls::Hook};

/// New connections a second, in each direction between two nodes.
const RATE: u32 = 200;
/// Connections that live for a while, so that some are open at every moment of the upgrade.
const LONG_RATE: u32 = 20;
const LONG: Duration = Duration::from_secs(2);
/// How long all is knocked on: an upgrade of two nodes takes half of it.
const SECONDS: u64 = 60;

/// Looks at a node's pins until it is told to stop: how often, and how often a hook was missing.
fn watch_hooks(cluster: &Cluster, node: &str, stop: &AtomicBool) -> Result<(usize, Vec<String>)> {
    let (mut looks, mut missing) = (0, Vec::new());
    while !stop.load(Ordering::Acquire) {
        let mut find = cluster.inside(node, "find");
        let output = find.args(["/sys/fs/bpf/sluice", "-type", "f"]).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let hooks = text.lines().filter(|line| line.contains("/hook/")).count();
        let pods = text.lines().filter(|line| line.ends_with("/inbound")).count();
        if hooks != Hook::OF_NODE.len() || pods == 0 {
            missing.push(format!("{node}: {hooks} hooks, {pods} pods"));
        }
        looks += 1;
        thread::sleep(Duration::from_millis(20));
    }
    Ok((looks, missing))
}

#[test]
fn an_upgrade_at_200_connections_a_second_each_way_loses_none() -> Result<()> {
    let cluster = Cluster::open()?;
    cluster.upgrade(&[])?;
    let namespace = cluster.namespace("life-upgrade")?;
    namespace.enrol()?;
    namespace.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default}\n\
         spec: {mtls: {mode: STRICT}}\n",
    )?;
    namespace.talkers()?;
    namespace.await_captured(2)?;
    let canary = Canary::new()?;
    for (from, to) in [("a", "b"), ("b", "a")] {
        namespace.await_reached(from, to, &canary)?;
    }
    let (before, containers) = (cluster.agents()?, namespace.containers()?);
    let wire = cluster.eavesdrop(&canary)?;
    for pair in [("a", "b"), ("b", "a")] {
        namespace.knock(pair, &canary, RATE, Duration::ZERO, SECONDS)?;
        namespace.knock(pair, &canary, LONG_RATE, LONG, SECONDS)?;
    }
    let stop = AtomicBool::new(false);
    let (looks, missing) = thread::scope(|scope| {
        let watches = NODES.map(|node| scope.spawn(|| watch_hooks(&cluster, node, &stop)));
        thread::sleep(Duration::from_secs(3));
        let started = Instant::now();
        // Any value that changes the agents' configuration.
        let upgraded = cluster.upgrade(&["agent.drainSeconds=6"]);
        println!("both agents replaced after {:?}", started.elapsed());
        stop.store(true, Ordering::Release);
        let mut sums = (0, Vec::new());
        for watch in watches {
            let (looks, missing) = watch.join().ok().context("the watch panicked")??;
            sums.0 += looks;
            sums.1.extend(missing);
        }
        upgraded.map(|()| sums)
    })?;
    let after = cluster.agents()?;
    let mut failed = 0;
    for from in ["a", "b"] {
        for rate in [RATE, LONG_RATE] {
            let knocked = namespace.knocked(from, rate)?;
            println!("from {from} at {rate}/s: {knocked}");
            failed += knocked.failed;
            ensure!(knocked.served > u64::from(rate) * SECONDS / 2, "hardly any was served");
        }
    }
    println!("looked {looks} times at the hooks");
    ensure!(missing.is_empty(), "hooks were absent: {missing:?}");
    let both: BTreeSet<_> = before.iter().chain(&after).collect();
    ensure!(both.len() == before.len() + after.len(), "agents stayed: {before:?}, {after:?}");
    wire.seen()?.ensure_tls_only(sluice_tests::cluster::life::PORT)?;
    ensure!(namespace.containers()? == containers, "a container was restarted");
    ensure!(namespace.captured()? == 2, "a pod lost its mark");
    ensure!(failed == 0, "{failed} connections were lost: {}", cluster.agents_logs());
    for (from, to) in [("a", "b"), ("b", "a")] {
        namespace.await_reached(from, to, &canary)?;
    }
    Ok(())
}
