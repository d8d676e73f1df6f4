//! A log that nobody reads, because a container runtime restarts or the disk of its logs stands still: the agent serves
//! and ends as ever, and says afterwards what is missing.

use std::{
    fs::File,
    io::{ErrorKind, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    process::Command,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::{
    Family, Lab, NodeName, Process, World,
    agent::binary,
    traffic::{Probe, Server, Service, flood},
};

const PORT: u16 = 7400;
/// By when an agent that was started has captured its pods, or one that was asked to stop has ended.
const PATIENCE: Duration = Duration::from_secs(15);
/// What a pipe and the agent's room for its log do not hold: each connection has a line of either end.
const MORE_THAN_FITS: u64 = 8_000;
const AT_ONCE: u64 = 100;
/// What a pipe does not hold.
const MORE_THAN_A_PIPE: u64 = 500;

/// An agent whose log is a pipe, and the end that is to be read.
struct Unread {
    lab: Lab,
    agent: Process,
    log: File,
}

impl Unread {
    fn start() -> Result<Self> {
        let world = World::builder().pod("client", NodeName::A).pod("near", NodeName::A).build()?;
        let mut lab = Lab::start(world, &["client", "near"])?;
        lab.agent(NodeName::A)?.terminate()?;
        let directory = lab.world.directory().join(NodeName::A.as_str());
        let pipe = directory.join("log");
        ensure!(Command::new("mkfifo").arg(&pipe).status()?.success(), "mkfifo");
        let log = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&pipe)?;
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" agent --config \"$1\" 2>\"$2\""]);
        command.arg(binary()?).arg(directory.join("config.yaml")).arg(&pipe);
        let node = lab.world.node(NodeName::A);
        let agent = Process::start(lab.world.directory(), node, "unread", command)?;
        let until = Instant::now() + PATIENCE;
        while !lab.captured_on(NodeName::A).is_ok_and(|captured| captured.len() == 2) {
            ensure!(Instant::now() < until, "no agent: {}", agent.log());
            thread::sleep(Duration::from_millis(50));
        }
        Ok(Self { lab, agent, log })
    }

    /// Makes that many connections between the two pods, and fails unless each is served; soon, for those of an agent that
    /// stands still take long.
    fn connect(&self, count: u64) -> Result<()> {
        let near = self.lab.pod("near")?;
        let _server = Server::on_port(&near.netns, PORT, Service::Addresses)?;
        let targets = Family::BOTH.map(|family| near.at(family, PORT));
        for _ in 0..count / AT_ONCE {
            let result = flood(&self.lab.pod("client")?.netns, &targets, AT_ONCE, 10)?;
            ensure!(result.right.load(Ordering::Relaxed) == AT_ONCE, "{result:?}");
        }
        Ok(())
    }
}

/// Reads to the end.
fn read(mut log: File) -> Result<String> {
    let (mut text, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    loop {
        match log.read(&mut buffer) {
            Ok(0) => return Ok(String::from_utf8(text)?),
            Ok(length) => text.extend_from_slice(buffer.get(..length).context("a read")?),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn an_agent_whose_log_nobody_reads_serves_on_and_tells_later_what_is_missing() -> Result<()> {
    let mut unread = Unread::start()?;
    unread.connect(MORE_THAN_FITS)?;
    let log = unread.log.try_clone()?;
    let reading = thread::spawn(move || read(log));
    unread.connect(100)?;
    unread.agent.terminate(PATIENCE)?;
    drop(unread.agent);
    let log = reading.join().ok().context("the reader panicked")??;
    ensure!(log.contains("lines are missing here"), "{} bytes of log", log.len());
    ensure!(log.lines().last().is_some_and(|line| line.contains("stopped")), "the end is missing");
    let lines = log.lines().filter(|line| line.contains("connection complete")).count();
    ensure!(u64::try_from(lines)? < 2 * MORE_THAN_FITS, "all {lines} lines found room");
    Ok(())
}

#[test]
fn an_agent_whose_log_nobody_reads_ends_when_it_is_told_to() -> Result<()> {
    let mut unread = Unread::start()?;
    unread.connect(MORE_THAN_A_PIPE)?;
    let near = unread.lab.pod("near")?;
    let _server = Server::on_port(&near.netns, PORT, Service::Echo)?;
    Probe::ensure_served(&unread.lab.pod("client")?.netns, near.at(Family::V4, PORT))?;
    let status = unread.agent.terminate(PATIENCE)?;
    ensure!(status.success(), "{status}");
    Ok(())
}
