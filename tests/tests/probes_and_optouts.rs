//! Under STRICT the kubelet, and nobody else, reaches the ports that a pod declares for probes. What a pod keeps out of
//! the mesh stays out of it, and nothing more.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sluice_tests::{
    Canary, Capture, Family, Lab, MeshFile, Netns, NodeName, Process, World, policies,
    privilege::cgroup_root,
    traffic::{Probe, Server, Service},
};

/// The port that the pod declares for probes, and one that it does not.
const PROBED: u16 = 7000;
const UNDECLARED: u16 = 7001;
const HELLO: &str = "hello";

/// A cgroup for one player, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(world: &World, name: &str) -> Result<Self> {
        let path = cgroup_root()?.join(format!("{}-{name}", world.id()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Says hello from this cgroup and `netns`, and returns what comes back.
    fn says_hello(&self, netns: &Netns, to: SocketAddr) -> Result<String> {
        let script = format!(
            "echo $$ > {}/cgroup.procs; exec 3<>/dev/tcp/{}/{} && echo {HELLO} >&3 && head -n 1 <&3",
            self.0.display(),
            to.ip(),
            to.port()
        );
        let mut command = Command::new("timeout");
        let Output { stdout, .. } =
            Process::output(netns, command.args(["5", "bash", "-c", &script]))?;
        Ok(String::from_utf8_lossy(&stdout).trim().to_owned())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The processes in it have ended, or will within moments.
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A lab under STRICT whose pod `web` declares a probe port, and its node's kubelet.
struct Probed {
    lab: Lab,
    kubelet: Cgroup,
    _servers: Vec<Server>,
}

impl Probed {
    fn start(bridged: bool) -> Result<Self> {
        let builder = World::builder().pod("web", NodeName::A).pod("near", NodeName::A);
        let world = if bridged { builder.bridged() } else { builder }.build()?;
        let kubelet = Cgroup::new(&world, "kubelet")?;
        let mut mesh = MeshFile::of(&world);
        mesh.enrol("web", true)?;
        mesh.pod("web")?.probe_ports = vec![PROBED];
        let settings = format!(
            "ca: {{ mode: embedded, dir: {} }}\nkubelet: {{ cgroup: {} }}",
            world.directory().join("ca").display(),
            kubelet.0.display()
        );
        let strict = [("mtls.yaml", &*policies::peer_authentication("STRICT"))];
        let lab = Lab::start_set(world, mesh, &strict, Some(&settings))?;
        let serve = |port| Server::on_port(&lab.pod("web")?.netns, port, Service::Echo);
        let servers = vec![serve(PROBED)?, serve(UNDECLARED)?];
        Ok(Self { lab, kubelet, _servers: servers })
    }

    /// Returns whether the pod's port answers the player. Fails if the two families differ.
    fn is_answered(&self, player: &Cgroup, netns: &Netns, port: u16) -> Result<bool> {
        let answered = |family| {
            let answer = player.says_hello(netns, self.lab.pod("web")?.at(family, port))?;
            ensure!(answer.is_empty() || answer == HELLO, "answered {answer:?}");
            Ok(answer == HELLO)
        };
        let (v4, v6) = (answered(Family::V4)?, answered(Family::V6)?);
        ensure!(v4 == v6, "over IPv4: {v4}, over IPv6: {v6}");
        Ok(v4)
    }
}

#[test]
fn the_kubelet_probes_a_strict_pod_and_impostors_do_not() -> Result<()> {
    for bridged in [false, true] {
        let mut lab = Probed::start(bridged)?;
        let node = lab.lab.world.node(NodeName::A).clone();
        assert!(lab.is_answered(&lab.kubelet, &node, PROBED)?, "the kubelet (bridged: {bridged})");
        assert!(!lab.is_answered(&lab.kubelet, &node, UNDECLARED)?, "a port that is not declared");
        let other = Cgroup::new(&lab.lab.world, "other")?;
        assert!(!lab.is_answered(&other, &node, PROBED)?, "another process of the node");
        let elsewhere = lab.lab.pod("near")?.netns.clone();
        assert!(!lab.is_answered(&lab.kubelet, &elsewhere, PROBED)?, "from a pod");
        let far = lab.lab.world.node(NodeName::B).clone();
        assert!(!lab.is_answered(&lab.kubelet, &far, PROBED)?, "from another node");
        assert_eq!(lab.lab.agent(NodeName::A)?.counter("web", "probes")?, 2);
    }
    Ok(())
}

#[test]
fn probes_pass_while_there_is_no_agent_and_nothing_else_does() -> Result<()> {
    let mut lab = Probed::start(false)?;
    let node = lab.lab.world.node(NodeName::A).clone();
    lab.lab.agent(NodeName::A)?.kill9()?;
    assert!(lab.is_answered(&lab.kubelet, &node, PROBED)?, "a pod is not restarted for that");
    assert!(!lab.is_answered(&lab.kubelet, &node, UNDECLARED)?);
    Ok(())
}

#[test]
fn probe_ports_change_while_the_pod_runs() -> Result<()> {
    let mut lab = Probed::start(false)?;
    let node = lab.lab.world.node(NodeName::A).clone();
    let before = lab.lab.agent(NodeName::A)?.counter("web", "inbound")?;
    lab.lab.edit_mesh(|mesh| {
        mesh.pod("web")?.probe_ports = vec![UNDECLARED];
        Ok(())
    })?;
    assert!(lab.is_answered(&lab.kubelet, &node, UNDECLARED)?);
    assert!(!lab.is_answered(&lab.kubelet, &node, PROBED)?);
    let after = lab.lab.agent(NodeName::A)?.counter("web", "inbound")?;
    assert_eq!(after, before + 2, "what is no probe is the agent's to refuse");
    Ok(())
}

fn two_pods() -> Result<(World, MeshFile)> {
    let world = World::builder()
        .pod("client", NodeName::A)
        .pod("outside", NodeName::A)
        .pod("server", NodeName::B)
        .build()?;
    let mut mesh = MeshFile::of(&world);
    mesh.enrol("client", true)?;
    mesh.enrol("server", true)?;
    Ok((world, mesh))
}

/// Returns whether a canary that the client sends to the server's port is on the wire between the nodes.
fn is_on_the_wire(lab: &Lab, family: Family, port: u16) -> Result<bool> {
    let canary = Canary::new()?;
    let capture = Capture::between_nodes(&lab.world, &canary)?;
    let mut probe = Probe::connect(&lab.pod("client")?.netns, lab.pod("server")?.at(family, port))?;
    probe.echo(canary.as_bytes())?;
    let seen = capture.seen()?;
    ensure!(seen.lost == 0, "{seen:?}");
    Ok(seen.canaries > 0)
}

#[test]
fn outbound_opt_outs_leave_the_mesh_live_and_come_back() -> Result<()> {
    let (world, mesh) = two_pods()?;
    let mut lab = Lab::start_with(world, mesh, &[])?;
    let serve = |lab: &Lab, port| Server::on_port(&lab.pod("server")?.netns, port, Service::Echo);
    let _servers = [serve(&lab, 5432)?, serve(&lab, 8080)?];
    let networks: Vec<String> = Family::BOTH
        .iter()
        .map(|family| Ok(format!("{}/128", lab.pod("server")?.ip(*family))))
        .collect::<Result<_>>()?;
    for family in Family::BOTH {
        assert!(!is_on_the_wire(&lab, family, 5432)?, "{family:?}: in the mesh");
    }
    lab.edit_mesh(|mesh| {
        mesh.pod("client")?.bypass.outbound_ports = vec![5432];
        Ok(())
    })?;
    for family in Family::BOTH {
        assert!(is_on_the_wire(&lab, family, 5432)?, "{family:?}: the port that is kept out");
        assert!(!is_on_the_wire(&lab, family, 8080)?, "{family:?}: another port");
    }
    assert_eq!(lab.agent(NodeName::A)?.counter("client", "bypassed")?, 2);
    lab.edit_mesh(|mesh| {
        let bypass = &mut mesh.pod("client")?.bypass;
        bypass.outbound_ports.clear();
        bypass.outbound_networks =
            networks.iter().filter(|net| net.contains("::")).cloned().collect();
        Ok(())
    })?;
    assert!(is_on_the_wire(&lab, Family::V6, 8080)?, "the network that is kept out");
    assert!(!is_on_the_wire(&lab, Family::V4, 8080)?, "another network");
    assert!(!is_on_the_wire(&lab, Family::V4, 5432)?, "taken back");
    Ok(())
}

#[test]
fn inbound_opt_outs_are_open_under_strict_to_the_mesh_and_to_others() -> Result<()> {
    let (world, mut mesh) = two_pods()?;
    mesh.pod("server")?.bypass.inbound_ports = vec![9000];
    let strict = [("mtls.yaml", &*policies::peer_authentication("STRICT"))];
    let mut lab = Lab::start_with(world, mesh, &strict)?;
    let serve = |lab: &Lab, port| Server::on_port(&lab.pod("server")?.netns, port, Service::Echo);
    let _servers = [serve(&lab, 9000)?, serve(&lab, 9001)?];
    for family in Family::BOTH {
        let at = |port| Ok::<_, anyhow::Error>(lab.pod("server")?.at(family, port));
        for pod in ["client", "outside"] {
            Probe::ensure_served(&lab.pod(pod)?.netns, at(9000)?)?;
        }
        Probe::ensure_served(&lab.pod("client")?.netns, at(9001)?)?;
        Probe::ensure_refused(&lab.pod("outside")?.netns, at(9001)?)?;
        assert!(is_on_the_wire(&lab, family, 9000)? && !is_on_the_wire(&lab, family, 9001)?);
    }
    lab.agent(NodeName::B)?.wait_for_count("server", "bypassed", 6)
}
