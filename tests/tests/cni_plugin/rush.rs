//! Many pods at once: the runtime starts and ends them in parallel, and each is captured when it starts.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Canary, Capture, NodeName, full_size,
    traffic::{Probe, Server, Service},
};

use crate::{
    PORT,
    lab::{Node, Sandbox},
};

/// The number of pods; the network has addresses for hardly more.
const PODS: u8 = 48;
/// How long a runtime waits for a plugin, which ours never exceeds.
const HARD_STOP: Duration = Duration::from_secs(10);

/// Does `what` with all sandboxes at once, and returns what came of each.
fn at_once<T: Send>(
    sandboxes: &[Sandbox],
    what: impl Fn(&Sandbox) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> =
            sandboxes.iter().map(|sandbox| scope.spawn(|| what(sandbox))).collect();
        let ended = threads.into_iter().map(|thread| thread.join().ok().context("it panicked")?);
        ended.collect()
    })
}

/// Starts a pod as the kubelet does: a failed ADD is undone and tried again. Returns how long the last try took.
fn add(node: &Node, sandbox: &Sandbox) -> Result<Duration> {
    let deadline = Instant::now() + 6 * HARD_STOP;
    loop {
        let start = Instant::now();
        let answer = node.tool_with("add", sandbox)?;
        let took = start.elapsed();
        ensure!(took < HARD_STOP + Duration::from_secs(2), "{} took {took:?}", sandbox.name);
        if answer.succeeded {
            return Ok(took);
        }
        ensure!(Instant::now() < deadline, "{}: {answer:?}", sandbox.name);
        node.tool_with("del", sandbox)?.ok()?;
        thread::sleep(Duration::from_millis(200));
    }
}

fn is_of_the_rush(pod: &str) -> bool {
    pod.starts_with("rush-")
}

#[test]
fn pods_that_start_and_end_all_at_once_are_captured_each_and_leave_nothing() -> Result<()> {
    let mut node = Node::start()?;
    let server = Server::on_port(&node.lab.pod("server")?.netns, PORT, Service::Echo)?;
    let sandboxes = node.sandboxes(PODS)?;
    let target = node.server(PORT)?;
    let rounds = if full_size() { 20 } else { 2 };
    let mut times = Vec::new();
    for _ in 0..rounds {
        let canary = Canary::new()?;
        let capture = Capture::between_nodes(&node.lab.world, &canary)?;
        times.extend(at_once(&sandboxes, |sandbox| {
            let took = add(&node, sandbox)?;
            // This is the pod's first act.
            Probe::connect(&sandbox.netns, target)?.echo(canary.as_bytes())?;
            Ok(took)
        })?);
        capture.seen()?.ensure_tls_only(PORT)?;
        at_once(&sandboxes, |sandbox| node.tool_with("check", sandbox)?.ok())?;
        let captured = node.lab.captured_on(NodeName::A)?;
        ensure!(captured.len() >= sandboxes.len(), "captured: {captured:?}");
        at_once(&sandboxes, |sandbox| node.tool_with("del", sandbox)?.ok())?;
    }
    times.sort();
    println!(
        "{} ADDs, {PODS} at once: median {:?}, 99 of 100 within {:?}",
        times.len(),
        times[times.len() / 2],
        times[times.len() * 99 / 100]
    );
    node.lab.write_mesh(|mesh| {
        mesh.pods.retain(|pod| !is_of_the_rush(&pod.name));
        Ok(())
    })?;
    let start = Instant::now();
    while node.lab.captured_on(NodeName::A)?.iter().any(|name| is_of_the_rush(name)) {
        ensure!(
            start.elapsed() < HARD_STOP,
            "captured still: {:?}",
            node.lab.captured_on(NodeName::A)?
        );
        thread::sleep(Duration::from_millis(100));
    }
    drop(server);
    Ok(())
}
