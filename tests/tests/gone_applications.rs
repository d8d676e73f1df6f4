//! An application that has gone while the other goes on: the agent beside it finds out, be it that the
//! kernel answers for it, or only when it is asked, and tells the other.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use sluice_tests::{
    Family, Lab, Netns, NodeName, Process, World, full_size,
    traffic::pair::{Pair, ensure_reset},
};
use socket2::{SockRef, TcpKeepalive};

const PORT: u16 = 7150;
/// The agent asks after a minute of silence, and the answer is a reset. With this much less than a minute left of it, the
/// test takes seconds.
const FOUND_OUT: Duration = Duration::from_secs(75);
const HURRIED: Duration = Duration::from_secs(15);
const PAIRS: [(&str, &str); 3] = [("client", "server"), ("client", "near"), ("outside", "server")];

fn open(lab: &Lab, client: &str, server: &str, family: Family) -> Result<Pair> {
    let (client, server) = (lab.pod(client)?, lab.pod(server)?);
    Pair::open(&client.netns, &server.netns, server.at(family, PORT))
}

fn lab() -> Result<Lab> {
    let world = World::builder()
        .pod("client", NodeName::A)
        .pod("near", NodeName::A)
        .pod("outside", NodeName::A)
        .pod("server", NodeName::B)
        .build()?;
    Lab::start(world, &["client", "near", "server"])
}

/// How many connected sockets of a namespace would ask a silent peer, and how many would not.
fn asking(netns: &Netns) -> Result<(usize, usize)> {
    let mut command = Command::new("ss");
    let output = Process::output(netns, command.args(["-Htno", "state", "established"]))?;
    ensure!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
    let sockets = String::from_utf8(output.stdout)?;
    let asking = sockets.lines().filter(|line| line.contains("timer:(keepalive,")).count();
    Ok((asking, sockets.lines().count() - asking))
}

#[test]
fn an_agent_asks_the_applications_beside_it_whether_they_are_there() -> Result<()> {
    let lab = lab()?;
    let mut pairs = Vec::new();
    for (client, server) in PAIRS {
        for family in Family::BOTH {
            pairs.push(open(&lab, client, server, family)?);
        }
    }
    // For each pair and family the application has one socket and the agent two, of which one leads to the
    // other pod; where the stream is joined in memory that is an idle session's.
    let expected = [("client", 2 * 2 * 2, 2 * 2), ("server", 2 * 2 * 2, 2 * 2), ("near", 2 * 2, 2)];
    for (pod, asking_sockets, others) in expected {
        let expected = (asking_sockets, others);
        // What has just sent something waits for its acknowledgement first.
        let until = Instant::now() + Duration::from_secs(2);
        while asking(&lab.pod(pod)?.netns)? != expected && Instant::now() < until {
            thread::sleep(Duration::from_millis(20));
        }
        let found = asking(&lab.pod(pod)?.netns)?;
        ensure!(found == expected, "{pod}: {found:?}, not {expected:?}");
    }
    Ok(())
}

/// Sends without end; how the kernel says that nobody reads.
fn refused(stream: &mut TcpStream, until: Instant) -> Result<ErrorKind> {
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    while Instant::now() < until {
        match stream.write(&[0; 4096]) {
            Ok(_) => thread::sleep(Duration::from_millis(5)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Ok(error.kind()),
        }
    }
    bail!("it can still send")
}

#[test]
fn who_sends_on_is_told_that_the_other_has_closed() -> Result<()> {
    let lab = lab()?;
    for (client, server) in PAIRS {
        for family in Family::BOTH {
            let of = || format!("{client} to {server}, {family:?}");
            for client_closes in [true, false] {
                let pair = open(&lab, client, server, family)?;
                let (gone, mut left) = if client_closes {
                    (pair.client, pair.server)
                } else {
                    (pair.server, pair.client)
                };
                // In order: it has read all that was sent.
                drop(gone);
                ensure!(left.read(&mut [0]).with_context(of)? == 0, "{}: no end", of());
                let refused = refused(&mut left, Instant::now() + Duration::from_secs(5))
                    .with_context(|| format!("{}, client closes: {client_closes}", of()))?;
                let expected = [ErrorKind::ConnectionReset, ErrorKind::BrokenPipe];
                ensure!(expected.contains(&refused), "{}: {refused:?}", of());
            }
        }
    }
    Ok(())
}

/// Ends the connection of `gone` so that its reset gets nowhere.
fn vanish(netns: &Netns, gone: Vec<TcpStream>) -> Result<()> {
    netns.ip("link set lo down")?;
    for stream in gone {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        drop(stream);
    }
    netns.ip("link set lo up")
}

/// Has every socket of the agents that asks a silent peer ask after a second, as it does by itself after a minute.
fn hurry(lab: &mut Lab) -> Result<()> {
    for node in NodeName::BOTH {
        let agent = lab.agent(node)?.process()?.id();
        let pid = Pid::from_raw(agent.try_into()?).context("an agent without a process id")?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        for entry in fs::read_dir(format!("/proc/{agent}/fd"))? {
            let entry = entry?;
            // Closed meanwhile, or no socket.
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            if !target.to_string_lossy().starts_with("socket:") {
                continue;
            }
            let number = entry.file_name().to_string_lossy().parse()?;
            let Ok(socket) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
                continue;
            };
            let socket = SockRef::from(&socket);
            if socket.keepalive().is_ok_and(|asks| asks) {
                socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(1)))?;
            }
        }
    }
    Ok(())
}

#[test]
fn the_other_application_is_told_of_a_reset_that_was_lost() -> Result<()> {
    let mut lab = lab()?;
    let (mut near_gone, mut far_gone, mut left) = (Vec::new(), Vec::new(), Vec::new());
    for family in Family::BOTH {
        let pair = open(&lab, "client", "server", family)?;
        near_gone.push(pair.client);
        left.push((pair.server, family, "the client is gone"));
        let pair = open(&lab, "client", "server", family)?;
        far_gone.push(pair.server);
        left.push((pair.client, family, "the server is gone"));
    }
    vanish(&lab.pod("client")?.netns, near_gone)?;
    vanish(&lab.pod("server")?.netns, far_gone)?;
    thread::sleep(Duration::from_secs(1));
    for (stream, family, what) in &mut left {
        stream.set_nonblocking(true)?;
        let read = stream.read(&mut [0]);
        let is_open = matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock);
        ensure!(is_open, "{what}, {family:?}: the reset was not lost: {read:?}");
        stream.set_nonblocking(false)?;
    }
    let patience = if full_size() {
        FOUND_OUT
    } else {
        hurry(&mut lab)?;
        HURRIED
    };
    let until = Instant::now() + patience;
    for (stream, family, what) in &mut left {
        let left = until.saturating_duration_since(Instant::now());
        ensure_reset(stream, left).with_context(|| format!("{what}, {family:?}"))?;
    }
    Ok(())
}
