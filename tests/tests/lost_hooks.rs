//! Root takes away what captures a pod, as `rm -r` below the bpffs does, or a program that clears the filters of a
//! device. The agent finds out at its next audit and puts all of it back.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Canary, Capture, Family, Lab, NodeName, Process, World, agent,
    escape::{RawWay, Way},
    traffic::{Probe, Server, Service},
    world::POD_DEVICE,
};

const PORT: u16 = 7300;
/// How long the agent may take to put everything back; its audits are ten seconds apart.
const PUT_BACK: Duration = Duration::from_secs(30);
/// How long an agent that starts again may take to capture its pods.
const BACK_WITHIN: Duration = Duration::from_secs(10);
/// How long a packet that escapes may take to arrive.
const SETTLE: Duration = Duration::from_millis(30);

/// Returns the files below a directory, by their paths in it.
fn files_below(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        // A directory that is being put back may not be there yet.
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    Ok(files)
}

/// Removes every pin of the agent beside the client, and the filters of the client's device.
fn take_away(lab: &Lab, pins: &Path) -> Result<()> {
    fs::remove_dir_all(pins).with_context(|| format!("remove {}", pins.display()))?;
    let mut tc = Command::new("tc");
    tc.args(["qdisc", "del", "dev", &lab.pod("client")?.host_device(), "clsact"]);
    // This fails where the programs are at tcx, because there is no such qdisc.
    drop(Process::output(lab.world.node(NodeName::A), &mut tc)?);
    Ok(())
}

#[test]
fn what_captures_a_pod_is_put_back_when_somebody_takes_it_away() -> Result<()> {
    let world = World::builder().pod("client", NodeName::A).pod("server", NodeName::B).build()?;
    let mut lab = Lab::start(world, &["client", "server"])?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    let instance = lab.agent(NodeName::A)?.instance().to_owned();
    let pins = agent::pins(&lab.world).join("sluice").join(instance);
    let before = files_below(&pins)?;
    ensure!(before.iter().any(|pin| pin.ends_with("sluice_connect4")), "{before:?}");

    take_away(&lab, &pins)?;
    let end = Instant::now() + PUT_BACK;
    while files_below(&pins)? != before {
        ensure!(Instant::now() < end, "put back: {:?}, of {before:?}", files_below(&pins)?);
        thread::sleep(Duration::from_millis(100));
    }
    let agent = lab.agent(NodeName::A)?.process()?;
    agent.wait_for_line("had been detached by somebody", PUT_BACK).context("nobody is told")?;

    let (client, server) = (lab.pod("client")?, lab.pod("server")?);
    for family in Family::BOTH {
        let (canary, target) = (Canary::new()?, server.at(family, PORT));
        let capture = Capture::start(&server.netns, POD_DEVICE, &canary)?;
        Probe::connect(&client.netns, target)?.echo(canary.as_bytes())?;
        // A raw segment goes past the hooks, so the guard has to stop it.
        let raw = Way::Raw(RawWay::TcpSegment).send(client, target, &canary);
        thread::sleep(SETTLE);
        let seen = capture.seen()?;
        seen.ensure_no_canary().with_context(|| format!("{family:?}, the raw one: {raw:?}"))?;
        ensure!(seen.tls_on(PORT) > 0, "{family:?}: {seen:?}");
    }

    lab.agent(NodeName::A)?.kill9()?;
    let (client, target) = (&lab.pod("client")?.netns, lab.pod("server")?.at(Family::V4, PORT));
    Probe::ensure_refused(client, target).context("only the pins hold the hooks now")?;
    lab.start_agent(NodeName::A)?;
    lab.wait_until_settled(BACK_WITHIN)?;
    let (client, target) = (&lab.pod("client")?.netns, lab.pod("server")?.at(Family::V4, PORT));
    Probe::ensure_served(client, target)
}
