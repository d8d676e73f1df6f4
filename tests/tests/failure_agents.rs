//! Agents that die: enrolled pods are refused, quickly, and never fall back to plaintext.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use sluice_tests::{
    Canary, Capture, Family, Lab, NodeName, World, full_size,
    privilege::cgroup_root,
    syscalls::{Hook, Target, attached_programs},
    traffic::{Probe, Server, Service},
};

const PORT: u16 = 7000;
/// The promise while no agent runs.
const REFUSED_WITHIN: Duration = Duration::from_millis(100);
/// Of an agent that starts again.
const BACK_WITHIN: Duration = Duration::from_secs(10);

fn lab() -> Result<Lab> {
    let world = World::builder()
        .pod("client", NodeName::A)
        .pod("outside", NodeName::A)
        .pod("server", NodeName::B)
        .build()?;
    Lab::start(world, &["client", "server"])
}

#[test]
fn without_its_agent_a_pod_is_refused_at_once_and_nothing_leaks_until_it_is_back() -> Result<()> {
    let mut lab = lab()?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    let rounds = if full_size() { 20 } else { 2 };
    for (round, node) in (0..rounds).flat_map(|round| NodeName::BOTH.map(|node| (round, node))) {
        let canary = Canary::new()?;
        let capture = Capture::between_nodes(&lab.world, &canary)?;
        let targets = Family::BOTH.map(|family| lab.pod("server").map(|pod| pod.at(family, PORT)));
        lab.agent(node)?.kill9()?;
        for target in targets {
            let target = target?;
            for _ in 0..10 {
                let client = &lab.pod("client")?.netns;
                let refusal = attempt_with(client, target, &canary)?;
                ensure!(
                    refusal <= REFUSED_WITHIN,
                    "round {round}, agent of {node:?} dead: refused only after {refusal:?}"
                );
            }
        }
        if node == NodeName::B {
            let target = lab.pod("server")?.at(Family::V4, PORT);
            let refusal = Probe::ensure_refused(&lab.pod("outside")?.netns, target)?;
            ensure!(refusal.after <= REFUSED_WITHIN, "from outside: {refusal:?}");
        }
        lab.start_agent(node)?;
        lab.wait_until_settled(BACK_WITHIN)?;
        for family in Family::BOTH {
            let target = lab.pod("server")?.at(family, PORT);
            Probe::wait_until_served(&lab.pod("client")?.netns, target, Duration::from_secs(2))?;
            let mut probe = Probe::connect(&lab.pod("client")?.netns, target)?;
            probe.echo(canary.as_bytes())?;
        }
        capture.seen()?.ensure_tls_only(PORT).with_context(|| format!("{node:?}, {round}"))?;
    }
    Ok(())
}

/// Sends the canary if anything lets it; says how long the refusal took.
fn attempt_with(
    netns: &sluice_tests::Netns,
    target: std::net::SocketAddr,
    canary: &Canary,
) -> Result<Duration> {
    let start = Instant::now();
    match Probe::connect(netns, target) {
        Err(_) => Ok(start.elapsed()),
        Ok(mut probe) => match probe.echo(canary.as_bytes()) {
            Ok(()) => Err(anyhow!("{target} answered although an agent is dead")),
            Err(_) => Ok(start.elapsed()),
        },
    }
}

#[test]
fn pods_outside_the_mesh_do_not_notice_a_dead_agent() -> Result<()> {
    let mut lab = lab()?;
    lab.edit_mesh(|mesh| mesh.enrol("server", false))?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    for node in NodeName::BOTH {
        lab.agent(node)?.kill9()?;
    }
    for family in Family::BOTH {
        let target = lab.pod("server")?.at(family, PORT);
        Probe::ensure_served(&lab.pod("outside")?.netns, target)?;
    }
    Ok(())
}

#[test]
fn a_restarted_agent_takes_the_hooks_over_without_a_gap() -> Result<()> {
    let mut lab = lab()?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    let stop = Arc::new(AtomicBool::new(false));
    let watch = watch_hooks(&lab, &stop)?;
    for round in 0..3 {
        for node in NodeName::BOTH {
            if round == 1 {
                lab.agent(node)?.terminate()?;
            } else {
                lab.agent(node)?.kill9()?;
            }
            lab.start_agent(node)?;
            lab.wait_until_settled(BACK_WITHIN)?;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (samples, gaps) = watch.join().map_err(|_panic| anyhow!("the watcher panicked"))??;
    ensure!(samples > 100, "only {samples} samples");
    ensure!(
        gaps.is_empty(),
        "{} of {samples} samples lacked a hook: {:?}",
        gaps.len(),
        gaps.first()
    );
    let target = lab.pod("server")?.at(Family::V4, PORT);
    Probe::ensure_served(&lab.pod("client")?.netns, target)
}

type Watch = thread::JoinHandle<Result<(u64, Vec<String>)>>;

/// Samples what is attached to the client's namespace and, by name, the cgroup every few
/// milliseconds. Other agents of this machine come and go at the cgroup, so only too few is a gap.
fn watch_hooks(lab: &Lab, stop: &Arc<AtomicBool>) -> Result<Watch> {
    let (client, node) = (lab.pod("client")?.netns.clone(), lab.world.node(NodeName::A).clone());
    let device = lab.pod("client")?.host_device();
    let stop = Arc::clone(stop);
    let cgroup = File::open(cgroup_root()?)?;
    let watch = node.spawn(move || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
        let index = rustix::net::netdevice::name_to_index(&socket, &device)?;
        let (mut samples, mut gaps) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            samples += 1;
            let group = Target::Fd(cgroup.as_fd());
            let places = [
                (group, Hook::Connect4, 2),
                (group, Hook::Connect6, 2),
                (group, Hook::PeerName4, 2),
                (group, Hook::PeerName6, 2),
                (group, Hook::SockOps, 2),
                (Target::Fd(client.as_fd()), Hook::SkLookup, 1),
                (Target::Interface(index), Hook::TcxIngress, 1),
            ];
            for (target, hook, least) in places {
                let programs = attached_programs(target, hook)?;
                if programs.len() < least {
                    gaps.push(format!("{hook:?}: {programs:?}"));
                }
                // One of ours per pod: two would judge every packet twice.
                if least == 1 && programs.len() > 1 {
                    gaps.push(format!("{hook:?} twice: {programs:?}"));
                }
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok((samples, gaps))
    });
    Ok(watch)
}

#[test]
fn an_agent_that_is_asked_to_stop_keeps_its_pods_closed() -> Result<()> {
    let mut lab = lab()?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    lab.agent(NodeName::A)?.terminate()?;
    let target = lab.pod("server")?.at(Family::V4, PORT);
    let refusal = Probe::ensure_refused(&lab.pod("client")?.netns, target)?;
    ensure!(refusal.after <= REFUSED_WITHIN, "{refusal:?}");
    Ok(())
}

/// Both ends of a connection whose server has said half of what it has to say.
struct HalfSaid {
    ends: [TcpStream; 2],
    family: Family,
}

impl HalfSaid {
    fn open(lab: &Lab, client: &str, server: &str, family: Family) -> Result<Self> {
        let target = lab.pod(server)?.at(family, PORT);
        let listener = lab.pod(server)?.netns.run(|| Ok(TcpListener::bind(target)?))?;
        let mut near = lab.pod(client)?.netns.run(|| Ok(TcpStream::connect(target)?))?;
        near.write_all(b"?")?;
        let (mut far, _) = listener.accept()?;
        let mut byte = [0];
        far.read_exact(&mut byte)?;
        far.write_all(b"!")?;
        near.read_exact(&mut byte)?;
        Ok(Self { ends: [near, far], family })
    }

    /// Neither end may take what befalls it for the end of what the other had to say.
    fn ensure_reset(&mut self, within: Duration) -> Result<()> {
        for (end, name) in self.ends.iter_mut().zip(["client", "server"]) {
            end.set_read_timeout(Some(within))?;
            let read = end.read(&mut [0]);
            let is_reset =
                matches!(&read, Err(error) if error.kind() == ErrorKind::ConnectionReset);
            ensure!(is_reset, "the {name}, {:?}: {read:?}", self.family);
        }
        Ok(())
    }
}

#[test]
fn an_agent_that_ends_does_not_end_half_a_stream_in_order() -> Result<()> {
    let world = World::builder()
        .pod("client", NodeName::A)
        .pod("neighbour", NodeName::A)
        .pod("outside", NodeName::A)
        .pod("server", NodeName::B)
        .build()?;
    let mut lab = Lab::start(world, &["client", "neighbour", "server"])?;
    let pairs = [("client", "neighbour"), ("client", "server"), ("outside", "server")];
    let concerned = [(NodeName::A, &pairs[..2]), (NodeName::B, &pairs[1..])];
    for ((node, pairs), asked) in concerned.into_iter().flat_map(|at| [(at, true), (at, false)]) {
        let mut open = Vec::new();
        for (client, server) in pairs {
            for family in Family::BOTH {
                open.push(HalfSaid::open(&lab, client, server, family)?);
            }
        }
        let log = lab.agent(node)?.process()?.log().len();
        if asked {
            lab.agent(node)?.process()?.terminate(Duration::from_secs(15))?;
            let log = lab.agent(node)?.process()?.log().split_off(log);
            let told = "the agent went away before the connection ended";
            let lines =
                log.lines().filter(|line| line.contains("bytes_sent=1 ") && line.contains(told));
            // The agent of two pods has a line for each.
            let local = if node == NodeName::A { Family::BOTH.len() } else { 0 };
            ensure!(lines.count() == open.len() + local, "{node:?}: {log}");
        }
        lab.agent(node)?.kill9()?;
        for half in &mut open {
            half.ensure_reset(Duration::from_secs(5))
                .with_context(|| format!("{node:?}, asked: {asked}"))?;
        }
        lab.start_agent(node)?;
        lab.wait_until_settled(BACK_WITHIN)?;
    }
    Ok(())
}

#[test]
fn a_dead_peers_agent_is_not_mistaken_for_a_peer_outside_the_mesh() -> Result<()> {
    let mut lab = lab()?;
    let _server = Server::on_port(&lab.pod("server")?.netns, PORT, Service::Echo)?;
    let canary = Canary::new()?;
    let capture = Capture::between_nodes(&lab.world, &canary)?;
    lab.agent(NodeName::B)?.kill9()?;
    for family in Family::BOTH {
        let target = lab.pod("server")?.at(family, PORT);
        attempt_with(&lab.pod("client")?.netns, target, &canary)?;
    }
    capture.seen()?.ensure_no_canary()
}
