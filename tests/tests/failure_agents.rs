//! Agents that die: enrolled pods are refused, quickly, and never fall back to plaintext.

use std::{
    fs::File,
    io::{BufRead as _, BufReader, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    process::{Child, Command, Stdio},
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
    traffic::{Pair, Probe, Server, Service, pair::ensure_reset},
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
        let guard = (Target::Interface(index), Hook::TcxIngress, 1);
        let has_tcx = attached_programs(guard.0, guard.1).is_ok();
        let filters = (!has_tcx).then(FilterEvents::listen).transpose()?;
        let (mut samples, mut gaps) = (0, Vec::new());
        while !stop.load(Ordering::Relaxed) {
            samples += 1;
            let group = Target::Fd(cgroup.as_fd());
            let inbound = (Target::Fd(client.as_fd()), Hook::SkLookup, 1);
            let places = Hook::OF_NODE.map(|hook| (group, hook, 2));
            let of_pod = [inbound].into_iter().chain(has_tcx.then_some(guard));
            for (target, hook, least) in places.into_iter().chain(of_pod) {
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
        gaps.extend(filters.map(FilterEvents::deletions).transpose()?.unwrap_or_default());
        Ok((samples, gaps))
    });
    Ok(watch)
}

/// What the kernel tells of the filters in the calling thread's namespace. Before Linux 6.6 they are what guards a pod,
/// since there is no tcx.
struct FilterEvents {
    monitor: Child,
}

impl FilterEvents {
    fn listen() -> Result<Self> {
        let mut tc = Command::new("tc");
        let monitor = tc.arg("monitor").stdout(Stdio::piped()).spawn().context("start tc")?;
        Ok(Self { monitor })
    }

    /// Each deletion of a filter, and an entry if nothing was heard at all: the agents put theirs in place anew.
    fn deletions(mut self) -> Result<Vec<String>> {
        self.monitor.kill()?;
        let output = self.monitor.wait_with_output()?;
        let heard = String::from_utf8_lossy(&output.stdout);
        let filters = || heard.lines().filter(|line| line.contains("filter"));
        if filters().next().is_none() {
            return Ok(vec![format!("no filter was replaced: {heard}")]);
        }
        Ok(filters().filter(|line| line.starts_with("deleted")).map(str::to_owned).collect())
    }
}

#[test]
fn what_the_mesh_became_while_another_agent_failed_to_take_over_is_in_force_afterwards()
-> Result<()> {
    let mut lab = lab()?;
    let applied = |lab: &mut Lab| -> Result<usize> {
        let log = lab.agent(NodeName::A)?.process()?.log();
        Ok(log.lines().filter(|line| line.contains("state of the mesh applied")).count())
    };
    let until = |is_so: &mut dyn FnMut() -> Result<bool>| -> Result<()> {
        let deadline = Instant::now() + BACK_WITHIN;
        while !is_so()? {
            ensure!(Instant::now() < deadline, "it does not happen");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    };
    let place = lab.world.directory().join(NodeName::A.as_str()).join("agent.handover");
    until(&mut || Ok(place.exists()))?;
    let mut other = BufReader::new(UnixStream::connect(&place)?);
    other.get_mut().write_all(b"take over\n")?;
    let mut answer = String::new();
    other.read_line(&mut answer)?;
    assert_eq!(answer, "frozen\n");
    let before = applied(&mut lab)?;
    lab.write_mesh(|mesh| mesh.enrol("outside", true))?;
    until(&mut || Ok(applied(&mut lab)? > before))?;
    assert_eq!(lab.captured_on(NodeName::A)?, ["client"], "it leaves the hooks alone");
    drop(other);
    lab.wait_until_settled(BACK_WITHIN)
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
                let (client, server) = (lab.pod(client)?, lab.pod(server)?);
                let target = server.at(family, PORT);
                open.push((Pair::open(&client.netns, &server.netns, target)?, family));
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
        // Neither end may take what befalls it for the end of what the other had to say.
        for (pair, family) in &mut open {
            for (end, name) in [(&mut pair.client, "client"), (&mut pair.server, "server")] {
                ensure_reset(end, Duration::from_secs(5))
                    .with_context(|| format!("{node:?}, {name}, {family:?}, asked: {asked}"))?;
            }
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
