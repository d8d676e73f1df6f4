//! Probes: the kubelet reaches the ports that a pod declares for it, and nobody else does.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::PathBuf,
    process::{self, Child, Command, Stdio},
    time::{Duration, Instant},
};

use sluice_kernel::{Datapath, Feature, Kubelet, PodExemptions};

use crate::{
    lab::{AgentSockets, Lab, Pod, cgroup2, set_peers},
    wire::{ACK, PUSH_ACK, SYN, Sniffer, TCP, ipv4, send_frame, tcp_between, with_header_byte},
};

const PROBED: u16 = 8080;

/// A cgroup that is removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let path = cgroup2().join(format!("k{}-{name}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A process that has just ended may be in the cgroup for a moment longer.
        let deadline = Instant::now() + Duration::from_secs(2);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A connection from a process of its own, which says `hello` and ends when it has the answer.
struct Prober(Child);

impl Prober {
    /// Starts the process in a namespace (by its name) and a cgroup.
    fn start(netns: &str, cgroup: Option<&Cgroup>, to: SocketAddr) -> Self {
        let enter = cgroup
            .map(|cgroup| format!("echo $$ > {}/cgroup.procs && ", cgroup.0.display()))
            .unwrap_or_default();
        let script = format!(
            "{enter}exec 3<>/dev/tcp/{}/{} && printf hello >&3 && head -c 2 <&3",
            to.ip(),
            to.port()
        );
        let netns = format!("--net=/run/netns/{netns}");
        let mut command = Command::new("timeout");
        command.args(["5", "nsenter", &netns, "bash", "-c", &script]);
        Self(command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Waits for the process to end and returns the answer that it got.
    fn answer(mut self) -> String {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.wait().unwrap();
        text
    }
}

/// An enrolled pod that declares a probe port, and the kubelet's cgroup.
struct Probed {
    lab: Lab,
    datapath: Datapath,
    pod: Pod,
    agent: AgentSockets,
    kubelet: Cgroup,
}

impl Probed {
    fn new(name: &str) -> Self {
        Self::on(Lab::new(name), name)
    }

    fn on(lab: Lab, name: &str) -> Self {
        let datapath = lab.open();
        let pod = lab.pod(2);
        set_peers(&datapath, &[pod.v4, pod.v6]);
        let kubelet = Cgroup::new(name);
        datapath.set_kubelet(Some(Kubelet::Cgroup(kubelet.id()))).unwrap();
        let agent = pod.agent(&datapath, 1);
        pod.enroll_exempt(&lab, &datapath, &agent, &probed()).exempt.unwrap();
        Self { lab, datapath, pod, agent, kubelet }
    }

    /// Connects as the kubelet. Returns who was reached and answered: the application or the agent.
    fn probe(&self, address: IpAddr, port: u16) -> Reached {
        let start =
            || Prober::start(self.lab.node_name(), Some(&self.kubelet), (address, port).into());
        self.reach(address, port, start)
    }

    fn reach(&self, address: IpAddr, port: u16, start: impl FnOnce() -> Prober) -> Reached {
        let application = self.pod.listen((address, port));
        let worker = self.agent.one();
        let agent = if address.is_ipv4() { &worker.in_v4 } else { &worker.in_v6 };
        let prober = start();
        let (mut stream, reached) = accept_either(&application, agent);
        let mut data = [0; 5];
        stream.read_exact(&mut data).unwrap();
        assert_eq!(&data, b"hello");
        let peer = stream.peer_addr().unwrap();
        stream.write_all(b"ok").unwrap();
        assert_eq!(prober.answer(), "ok");
        if reached { Reached::Application(peer) } else { Reached::Agent }
    }

    fn probes(&self) -> u64 {
        self.pod.counters(&self.datapath).probes
    }

    fn drops(&self) -> u64 {
        self.pod.counters(&self.datapath).guard_drops
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Reached {
    Application(SocketAddr),
    Agent,
}

impl Reached {
    fn is_application(&self) -> bool {
        matches!(self, Self::Application(_))
    }
}

fn probed() -> PodExemptions {
    PodExemptions { probe_ports: [PROBED].into(), ..Default::default() }
}

/// Accepts from whichever listener has a connection first. Returns whether it was the
/// application's.
fn accept_either(application: &TcpListener, agent: &TcpListener) -> (TcpStream, bool) {
    let deadline = Instant::now() + Duration::from_secs(4);
    for listener in [application, agent] {
        listener.set_nonblocking(true).unwrap();
    }
    while Instant::now() < deadline {
        for (listener, is_application) in [(application, true), (agent, false)] {
            if let Ok((stream, _)) = listener.accept() {
                stream.set_nonblocking(false).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                return (stream, is_application);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("nobody was reached");
}

#[test]
fn the_kubelet_reaches_a_declared_port_and_is_answered() {
    let lab = Probed::new("probe");
    for address in [lab.pod.v4, lab.pod.v6] {
        let Reached::Application(peer) = lab.probe(address, PROBED) else {
            panic!("the probe of {address} went to the agent")
        };
        let node: IpAddr =
            if address.is_ipv4() { lab.lab.v4(1).into() } else { lab.lab.v6(1).into() };
        assert_eq!(peer.ip(), node, "no address is translated");
    }
    let counters = lab.pod.counters(&lab.datapath);
    assert_eq!((counters.probes, counters.inbound, counters.guard_drops), (2, 0, 0));
}

#[test]
fn without_tcx_the_kubelet_is_recognised_too() {
    let lab = Probed::on(Lab::new("probeclsact").without(&[Feature::Tcx]), "probeclsact");
    assert!(lab.probe(lab.pod.v4, PROBED).is_application());
    let audit =
        || lab.lab.on_node(|| lab.datapath.audit(lab.pod.cookie(), lab.pod.netns().as_fd()));
    assert!(audit().unwrap().complete());
    lab.pod.exempt(&lab.lab, &lab.datapath, &PodExemptions::default());
    assert_eq!(lab.probe(lab.pod.v4, PROBED), Reached::Agent);
    assert!(audit().unwrap().complete());
}

#[test]
fn a_port_that_is_not_declared_is_the_agents() {
    let lab = Probed::new("probeport");
    for address in [lab.pod.v4, lab.pod.v6] {
        assert_eq!(lab.probe(address, 8081), Reached::Agent);
    }
    assert_eq!(lab.probes(), 0);
}

#[test]
fn other_processes_of_the_node_and_the_kubelets_elsewhere_are_nobody() {
    let lab = Probed::new("probewho");
    let other = Cgroup::new("probewho-other");
    let elsewhere = lab.lab.pod(3);
    let to = |address| SocketAddr::new(address, PROBED);
    for address in [lab.pod.v4, lab.pod.v6] {
        let node = lab.lab.node_name();
        let by_other =
            lab.reach(address, PROBED, || Prober::start(node, Some(&other), to(address)));
        assert_eq!(by_other, Reached::Agent, "another cgroup of the node, as of a hostNetwork pod");
        let by_none = lab.reach(address, PROBED, || Prober::start(node, None, to(address)));
        assert_eq!(by_none, Reached::Agent, "no cgroup in particular");
        let elsewhere = elsewhere.namespace.name();
        let kubelet = Some(&lab.kubelet);
        let by_pod = lab.reach(address, PROBED, || Prober::start(elsewhere, kubelet, to(address)));
        assert_eq!(by_pod, Reached::Agent, "the kubelet's cgroup, in a pod's namespace");
    }
    lab.datapath.set_kubelet(None).unwrap();
    assert_eq!(lab.probe(lab.pod.v4, PROBED), Reached::Agent, "nobody is the kubelet");
    assert_eq!(lab.probes(), 0);
}

#[test]
fn a_kubelet_that_shares_its_cgroup_is_known_by_its_process_for_a_while() {
    let lab = Probed::new("probepid");
    let connect = || lab.lab.on_node(|| TcpStream::connect((lab.pod.v4, PROBED))).unwrap();
    let application = lab.pod.listen((lab.pod.v4, PROBED));
    let is_kubelet = |id, believed_for| {
        lab.datapath.set_kubelet(Some(Kubelet::Process { id, believed_for })).unwrap();
        let _client = connect();
        accept_either(&application, &lab.agent.one().in_v4).1
    };
    let minute = Duration::from_mins(1);
    assert!(is_kubelet(process::id(), minute));
    assert!(!is_kubelet(process::id(), Duration::ZERO), "not believed any more");
    assert!(!is_kubelet(process::id() + 1, minute), "another process");
}

#[test]
fn what_is_declared_changes_live() {
    let lab = Probed::new("probelive");
    assert!(lab.probe(lab.pod.v4, PROBED).is_application());
    let other = PodExemptions { probe_ports: [8081].into(), ..Default::default() };
    lab.pod.exempt(&lab.lab, &lab.datapath, &other);
    assert_eq!(lab.probe(lab.pod.v4, PROBED), Reached::Agent);
    assert!(lab.probe(lab.pod.v4, 8081).is_application());
    lab.pod.exempt(&lab.lab, &lab.datapath, &PodExemptions::default());
    assert_eq!(lab.probe(lab.pod.v4, 8081), Reached::Agent);
    assert_eq!(lab.probes(), 2);
}

#[test]
fn probes_outlive_the_agent_and_its_successor_needs_no_telling() {
    let Probed { lab, datapath, pod, agent, kubelet } = Probed::new("probelife");
    drop(datapath);
    let datapath = lab.open();
    let lab = Probed { lab, datapath, pod, agent, kubelet };
    assert!(lab.probe(lab.pod.v4, PROBED).is_application());
    // Without an agent's listeners everything is refused except probes.
    let Probed { lab, datapath, pod, agent, kubelet } = lab;
    drop(agent);
    let application = pod.listen((pod.v4, PROBED));
    let prober = Prober::start(lab.node_name(), Some(&kubelet), SocketAddr::new(pod.v4, PROBED));
    application.accept().unwrap().0.write_all(b"ok").unwrap();
    assert_eq!(prober.answer(), "ok");
    drop((datapath, lab));
}

#[test]
fn a_probe_is_answered_though_every_destination_is_captured() {
    let lab = Probed::new("probefull");
    let node = [lab.lab.v4(1).into(), lab.lab.v6(1).into()];
    set_peers(&lab.datapath, &[lab.pod.v4, lab.pod.v6, node[0], node[1]]);
    for address in [lab.pod.v4, lab.pod.v6] {
        assert!(lab.probe(address, PROBED).is_application(), "{address}");
    }
    assert_eq!(lab.drops(), 0);
}

/// A neighbour on the same link that is not enrolled, with packet sockets and the node's address.
struct Impostor<'a> {
    lab: &'a Probed,
    pod: Pod,
}

impl Impostor<'_> {
    fn packet(&self, source_port: u16, flags: u8, data: &[u8]) -> Vec<u8> {
        let (node, pod) = (self.lab.lab.v4(1), self.lab.lab.v4(2));
        ipv4(node, pod, TCP, &tcp_between((node, source_port), (pod, PROBED), flags, data))
    }

    fn send(&self, source_port: u16, flags: u8, data: &[u8]) {
        send_frame(&self.pod, &self.lab.pod, 0x0800, &self.packet(source_port, flags, data));
    }
}

#[test]
fn a_spoofed_node_address_opens_nothing() {
    let lab = Probed::new("spoof");
    let impostor = Impostor { lab: &lab, pod: lab.lab.pod(3) };
    assert!(lab.probe(lab.pod.v4, PROBED).is_application(), "there are probes at all");
    let (probes, inbound) = (lab.probes(), lab.pod.counters(&lab.datapath).inbound);
    impostor.send(33_333, SYN, b"");
    assert!(crate::lab::eventually(|| lab.pod.counters(&lab.datapath).inbound > inbound));
    assert_eq!(lab.probes(), probes, "the agent has it");
}

#[test]
fn the_connection_of_a_probe_cannot_be_replayed_or_joined() {
    let lab = Probed::new("replay");
    let impostor = Impostor { lab: &lab, pod: lab.lab.pod(3) };
    let Reached::Application(peer) = lab.probe(lab.pod.v4, PROBED) else { panic!("no probe") };
    let probes = lab.probes();
    let mut sniffer = Sniffer::new(&lab.pod);
    let sent = [(SYN, &b""[..]), (SYN, b"opening-canary"), (PUSH_ACK, b"joining-canary")];
    for (flags, data) in sent {
        let before = lab.drops();
        impostor.send(peer.port(), flags, data);
        assert!(crate::lab::eventually(|| lab.drops() > before), "flags {flags:#x}");
    }
    assert!(!sniffer.sees(b"-canary"));
    assert_eq!(lab.probes(), probes);
    // A segment without data does no harm, and another connection is for the agent to judge.
    let before = lab.drops();
    impostor.send(peer.port(), ACK, b"");
    impostor.send(peer.port().wrapping_add(1), PUSH_ACK, b"other-canary");
    assert!(sniffer.sees(b"other-canary"));
    assert_eq!(lab.drops(), before);
}

#[test]
fn a_probe_cannot_be_joined_in_disguise() {
    let lab = Probed::new("disguise");
    lab.lab.unfilter_bridge();
    let impostor = Impostor { lab: &lab, pod: lab.lab.pod(3) };
    let Reached::Application(peer) = lab.probe(lab.pod.v4, PROBED) else { panic!("no probe") };
    let plain = impostor.packet(peer.port(), PUSH_ACK, b"disguised-canary");
    let fragment = with_header_byte(&plain, 6, 0x20);
    let options = with_header_byte(&plain, 0, 0x46);
    let tagged = [&[0, 0, 0x08, 0x00][..], &plain].concat();
    let mut sniffer = Sniffer::new(&lab.pod);
    for (what, ethertype, packet) in [
        ("a fragment", 0x0800, &fragment),
        ("IPv4 options", 0x0800, &options),
        ("a priority tag", 0x8100, &tagged),
        ("a provider's tag", 0x88a8, &tagged),
    ] {
        let before = lab.drops();
        send_frame(&impostor.pod, &lab.pod, ethertype, packet);
        assert!(crate::lab::eventually(|| lab.drops() > before), "{what}");
    }
    assert!(!sniffer.sees(b"disguised-canary"));
}

#[test]
fn a_detached_recogniser_is_found() {
    let lab = Probed::new("probeaudit");
    let audit = || {
        lab.lab.on_node(|| lab.datapath.audit(lab.pod.cookie(), lab.pod.netns().as_fd())).unwrap()
    };
    assert!(audit().complete());
    lab.lab.lose(&lab.pod, "probe");
    // Nobody holds the link any more, but the kernel removes it asynchronously.
    assert!(crate::lab::eventually(|| audit().unprobed == [lab.pod.ifindex]));
    lab.pod.enroll_exempt(&lab.lab, &lab.datapath, &lab.agent, &probed()).exempt.unwrap();
    assert!(audit().complete());
}
