//! Many connections, clients that do not read, clients that do not speak, and no descriptors left.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use sluice_tests::{
    Family, Lab, MeshFile, NodeName, Process, World,
    agent::sibling,
    full_size, policies,
    privilege::descriptor_limit,
    traffic::{Probe, Server, Service},
};

const PORT: u16 = 7000;
/// The most memory that an agent may use per connection that is open and idle.
const MEMORY_PER_CONNECTION: u64 = 64 << 10;
/// How long a peer may dawdle with its handshake, as promised.
const HANDSHAKE: Duration = Duration::from_secs(10);

fn world() -> Result<World> {
    World::builder()
        .pod("client", NodeName::A)
        .pod("outside", NodeName::A)
        .pod("server", NodeName::B)
        .build()
}

/// Returns how many connections each of several meshes holds; together they are 10,000 at full
/// size. An agent needs two descriptors for each connection and keeps one in sixteen back, and this
/// machine may not grant one process 20,000.
fn shares() -> Vec<u64> {
    let mut left: u64 = if full_size() { 10_000 } else { 1_000 };
    let limit = descriptor_limit();
    let most = (limit - limit / 16).saturating_sub(600) / 2;
    let mut shares = Vec::new();
    while left > 0 {
        let share = left.min(most);
        shares.push(share);
        left -= share;
    }
    shares
}

/// A mesh with its connections, half of them over each family.
struct Holding {
    lab: Lab,
    _server: Server,
    share: u64,
    before: [u64; 2],
    holders: Vec<Process>,
}

fn hold(share: u64, seconds: u64) -> Result<Holding> {
    let mut lab = Lab::start(world()?, &["client", "server"])?;
    let server = lab.pod("server")?;
    let echo = Server::on_port(&server.netns, PORT, Service::Echo)?;
    let targets = Family::BOTH.map(|family| server.at(family, PORT));
    let before = memory(&mut lab)?;
    let mut holders = Vec::new();
    for (target, count) in targets.into_iter().zip([share / 2, share - share / 2]) {
        let mut command = Command::new(sibling("sluice-lab")?);
        command.args(["hold", &target.to_string(), "--count", &count.to_string()]);
        command.args(["--seconds", &seconds.to_string()]);
        let name = format!("holder-{}", target.is_ipv6());
        holders.push(lab.world.start("client", &name, command)?);
    }
    Ok(Holding { lab, _server: echo, share, before, holders })
}

#[test]
fn many_connections_are_held_at_once() -> Result<()> {
    let seconds = if full_size() { 15 } else { 3 };
    let shares = shares();
    let mut meshes =
        shares.iter().map(|share| hold(*share, seconds)).collect::<Result<Vec<_>>>()?;
    let mut total = 0;
    for mesh in &mut meshes {
        for holder in &mut mesh.holders {
            let held = holder.wait_for_line("holding", Duration::from_mins(2))?;
            let count: u64 = held.split(' ').nth(1).context("how many?")?.parse()?;
            println!("{held}");
            total += count;
        }
    }
    assert_eq!(total, shares.iter().sum::<u64>(), "connections held at once");
    for mesh in &mut meshes {
        let after = memory(&mut mesh.lab)?;
        for (before, after) in mesh.before.into_iter().zip(after) {
            let each = after.saturating_sub(before) / mesh.share;
            println!("agent: {before} to {after} bytes of memory, {each} for each connection");
            ensure!(each <= MEMORY_PER_CONNECTION || mesh.share < 500, "{each} bytes for each");
        }
    }
    for holder in meshes.iter_mut().flat_map(|mesh| &mut mesh.holders) {
        let done = holder.wait_for_line("done", Duration::from_mins(2))?;
        ensure!(done.contains("done: 0 failed"), "{done}");
    }
    Ok(())
}

fn memory(lab: &mut Lab) -> Result<[u64; 2]> {
    let [a, b] = NodeName::BOTH;
    Ok([lab.agent(a)?.process()?.resident_bytes()?, lab.agent(b)?.process()?.resident_bytes()?])
}

#[test]
fn a_stalled_reader_neither_grows_the_agents_nor_slows_the_others() -> Result<()> {
    let mut lab = Lab::start(world()?, &["client", "server"])?;
    let netns = lab.pod("server")?.netns.clone();
    let _echo = Server::on_port(&netns, PORT, Service::Echo)?;
    let _stream = Server::on_port(&netns, PORT + 1, Service::Stream)?;
    let _stall = Server::on_port(&netns, PORT + 2, Service::Stall)?;
    let at = |family, port| Ok::<_, anyhow::Error>(lab.pod("server")?.at(family, port));
    let targets = [at(Family::V4, PORT + 1)?, at(Family::V6, PORT + 1)?];
    let upload = at(Family::V4, PORT + 2)?;
    let echo = at(Family::V4, PORT)?;
    let client = lab.pod("client")?.netns.clone();
    let mut honest = Probe::connect(&client, echo)?;
    let quiet = slowest_echo(&mut honest)?;
    let before = memory(&mut lab)?;
    // Two clients that never read, and one whose server never reads.
    let _unread = targets.map(|target| Probe::connect(&client, target));
    let mut sender = Probe::connect(&client, upload)?;
    sender.stream().set_nonblocking(true)?;
    let end = Instant::now() + Duration::from_secs(if full_size() { 20 } else { 3 });
    let block = vec![b'x'; 1 << 16];
    let mut sent = 0_u64;
    let mut busy = Duration::ZERO;
    while Instant::now() < end {
        match sender.stream().write(&block) {
            Ok(length) => sent += u64::try_from(length)?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                busy = busy.max(slowest_echo(&mut honest)?);
            }
            Err(error) => return Err(error).context("upload"),
        }
    }
    let after = memory(&mut lab)?;
    println!("{sent} bytes accepted from the sender; echo {quiet:?} alone, {busy:?} beside them");
    for (before, after) in before.into_iter().zip(after) {
        let growth = after.saturating_sub(before);
        ensure!(growth < 16 << 20, "an agent grew by {growth} bytes");
    }
    ensure!(sent < 64 << 20, "{sent} bytes were taken from a sender whose reader stalls");
    ensure!(busy < Duration::from_millis(250), "an honest echo took {busy:?} (alone {quiet:?})");
    Ok(())
}

fn slowest_echo(probe: &mut Probe) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        probe.echo(b"0123456789abcdef")?;
        slowest = slowest.max(start.elapsed());
    }
    Ok(slowest)
}

#[test]
fn handshakes_that_do_not_get_on_are_cut_within_ten_seconds() -> Result<()> {
    let world = world()?;
    let mut mesh = MeshFile::of(&world);
    mesh.enrol("client", true)?;
    mesh.enrol("server", true)?;
    let strict = policies::peer_authentication("STRICT");
    let lab = Lab::start_with(world, mesh, &[("mtls.yaml", &strict)])?;
    let server = lab.pod("server")?;
    let _server = Server::on_port(&server.netns, PORT, Service::Echo)?;
    // The head of a TLS record that promises a long ClientHello, then next to nothing.
    let head = [0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03];
    let mut slow = Vec::new();
    for family in Family::BOTH {
        for sent in [0, 1, 5, head.len()] {
            let netns = &lab.pod("outside")?.netns;
            let mut probe = Probe::connect(netns, server.at(family, PORT))?;
            probe.stream().write_all(head.get(..sent).unwrap_or_default())?;
            slow.push((sent, probe));
        }
    }
    let start = Instant::now();
    while !slow.is_empty() {
        Probe::ensure_served(&lab.pod("client")?.netns, server.at(Family::V4, PORT))?;
        std::thread::sleep(Duration::from_millis(500));
        slow.retain_mut(|(sent, probe)| !is_cut(probe.stream(), *sent));
        let left: Vec<_> = slow.iter().map(|(sent, _)| *sent).collect();
        ensure!(
            start.elapsed() < HANDSHAKE + Duration::from_secs(1),
            "still open after {:?}, having sent these many bytes: {left:?}",
            start.elapsed()
        );
    }
    println!("all cut within {:?}", start.elapsed());
    Ok(())
}

/// Sends one more byte of a handshake that was begun. Returns whether the other end hung up.
fn is_cut(stream: &mut TcpStream, sent: usize) -> bool {
    if sent > 5 && stream.write_all(&[0]).is_err() {
        return true;
    }
    let mut byte = [0_u8; 1];
    stream.set_read_timeout(Some(Duration::from_millis(1))).ok();
    match stream.read(&mut byte) {
        // An alert announces the end, but is not the end.
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
    }
}

#[test]
fn at_the_limit_of_descriptors_the_agent_backs_off_and_comes_back() -> Result<()> {
    let mut lab = Lab::start(world()?, &["client", "server"])?;
    let server = lab.pod("server")?;
    let _server = Server::on_port(&server.netns, PORT, Service::Echo)?;
    let target = server.at(Family::V4, PORT);
    let client = lab.pod("client")?.netns.clone();
    let mut honest = Probe::connect(&client, target)?;
    honest.echo(b"before")?;

    let agent = lab.agent(NodeName::B)?.process()?;
    let full = getrlimit(Resource::Nofile);
    let scarce = u64::try_from(agent.descriptors()?)? + 20;
    limit(agent, Rlimit { current: Some(scarce), maximum: full.maximum })?;
    let crowd: Vec<_> = (0..60).filter_map(|_| open(&client, target)).collect();
    let (used, start) = (agent.cpu_time()?, Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let share =
        agent.cpu_time()?.saturating_sub(used).as_secs_f64() / start.elapsed().as_secs_f64();
    let open = u64::try_from(agent.descriptors()?)?;
    ensure!(open + 2 >= scarce, "{open} descriptors of {scarce} in use: that was no shortage");
    let lines = agent.log().lines().count();
    println!("{} connections tried, {share:.2} of a core, {lines} lines of log", crowd.len());
    ensure!(share < 0.2, "the agent uses {share:.2} of a core while it has no descriptors");
    honest.echo(b"during")?;

    drop(crowd);
    limit(lab.agent(NodeName::B)?.process()?, full)?;
    let took = Probe::wait_until_served(&client, target, Duration::from_secs(5))?;
    println!("served again after {took:?}");
    honest.echo(b"after")
}

fn limit(agent: &Process, limit: Rlimit) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(agent.id())?).context("pid")?;
    prlimit(Some(pid), Resource::Nofile, limit).context("prlimit")?;
    Ok(())
}

/// Opens a connection, which may or may not get through.
fn open(netns: &sluice_tests::Netns, target: std::net::SocketAddr) -> Option<TcpStream> {
    let patience = Duration::from_millis(500);
    netns.run(|| Ok(TcpStream::connect_timeout(&target, patience)?)).ok()
}
