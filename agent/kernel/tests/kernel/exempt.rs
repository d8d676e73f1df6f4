//! Opt-outs: what a pod or the node exempts is left alone, and nothing more. Changes apply at once.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use sluice_kernel::{Datapath, PodExemptions};
use socket2::SockRef;

use crate::{
    lab::{AgentSockets, Lab, Pod, set_peers},
    wire::{PUSH_ACK, Sniffer, TCP, ipv4, send_frame, tcp},
};

/// An enrolled pod, and a mesh peer on the same bridge that is not enrolled.
struct Exempted {
    lab: Lab,
    datapath: Datapath,
    pod: Pod,
    peer: Pod,
    agent: AgentSockets,
}

impl Exempted {
    fn new(name: &str, exemptions: &PodExemptions) -> Self {
        let lab = Lab::new(name);
        let datapath = lab.open();
        let (pod, peer) = (lab.pod(2), lab.pod(3));
        set_peers(&datapath, &[pod.v4, pod.v6, peer.v4, peer.v6]);
        let agent = pod.agent(&datapath, 1);
        pod.enroll_exempt(&lab, &datapath, &agent, exemptions).exempt.unwrap();
        Self { lab, datapath, pod, peer, agent }
    }

    fn exempt(&self, exemptions: &PodExemptions) {
        self.pod.exempt(&self.lab, &self.datapath, exemptions);
    }

    /// Whether the pod's connection to the peer's port reaches it directly and carries data both
    /// ways. If not, the agent must have it.
    fn goes_direct(&self, address: IpAddr, port: u16) -> bool {
        let listener = self.peer.listen((address, port));
        listener.set_nonblocking(true).unwrap();
        let captured = self.pod.counters(&self.datapath).captured;
        let client = self.pod.connect((address, port)).unwrap();
        if self.pod.counters(&self.datapath).captured > captured {
            assert!(listener.accept().is_err());
            return false;
        }
        let (accepted, _) = listener.accept().unwrap();
        assert_talk(&client, &accepted);
        true
    }

    /// Whether a connection of the peer to the pod's port reaches the application directly and
    /// carries data both ways. If not, the agent must have it.
    fn is_left_alone(&self, address: IpAddr, port: u16) -> bool {
        let application = self.pod.listen((address, port));
        let client = self.peer.connect((address, port)).unwrap();
        application.set_nonblocking(true).unwrap();
        let Ok((accepted, from)) = application.accept() else {
            self.agents(address).accept().unwrap();
            return false;
        };
        assert_eq!(from, client.local_addr().unwrap());
        assert_talk(&client, &accepted);
        true
    }

    fn agents(&self, address: IpAddr) -> &TcpListener {
        let worker = self.agent.one();
        if address.is_ipv4() { &worker.in_v4 } else { &worker.in_v6 }
    }
}

/// Asserts that data goes both ways.
fn assert_talk(mut client: &TcpStream, mut server: &TcpStream) {
    for stream in [client, server] {
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    }
    let mut data = [0; 4];
    client.write_all(b"ping").unwrap();
    server.read_exact(&mut data).unwrap();
    server.write_all(b"pong").unwrap();
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"pong");
}

fn outbound_ports(ports: &[u16]) -> PodExemptions {
    PodExemptions { outbound_ports: ports.iter().copied().collect(), ..Default::default() }
}

fn inbound_ports(ports: &[u16]) -> PodExemptions {
    PodExemptions { inbound_ports: ports.iter().copied().collect(), ..Default::default() }
}

fn outbound_networks(networks: &[(IpAddr, u8)]) -> PodExemptions {
    PodExemptions { outbound_networks: networks.to_vec(), ..Default::default() }
}

#[test]
fn an_outbound_port_is_reached_without_the_mesh_and_others_are_not() {
    let lab = Exempted::new("xout", &outbound_ports(&[5432]));
    for address in [lab.peer.v4, lab.peer.v6] {
        assert!(lab.goes_direct(address, 5432), "{address}");
        assert!(!lab.goes_direct(address, 5433), "{address}");
    }
    let counters = lab.pod.counters(&lab.datapath);
    assert_eq!((counters.bypassed, counters.captured, counters.direct), (2, 2, 0));
    assert_eq!(counters.guard_drops, 0);
}

#[test]
fn a_network_is_reached_without_the_mesh_and_others_are_not() {
    let lab = Exempted::new("xnet", &PodExemptions::default());
    let (v4, v6) = (lab.peer.v4, lab.peer.v6);
    assert!(!lab.goes_direct(v4, 80) && !lab.goes_direct(v6, 80));
    lab.exempt(&outbound_networks(&[(v4, 32)]));
    assert!(lab.goes_direct(v4, 80) && !lab.goes_direct(v6, 80));
    lab.exempt(&outbound_networks(&[(v6, 120)]));
    assert!(!lab.goes_direct(v4, 80) && lab.goes_direct(v6, 80));
    let all_v6 = "::".parse().unwrap();
    lab.exempt(&outbound_networks(&[(all_v6, 0)]));
    assert!(!lab.goes_direct(v4, 80), "all of IPv6 is none of IPv4");
    assert!(lab.goes_direct(v6, 80));
    lab.exempt(&outbound_networks(&[(Ipv4Addr::UNSPECIFIED.into(), 0)]));
    assert!(lab.goes_direct(v4, 80) && !lab.goes_direct(v6, 80));
}

#[test]
fn an_inbound_port_is_the_applications_own_and_its_answers_reach_peers() {
    let lab = Exempted::new("xin", &inbound_ports(&[9000]));
    for address in [lab.pod.v4, lab.pod.v6] {
        assert!(lab.is_left_alone(address, 9000), "{address}");
        assert!(!lab.is_left_alone(address, 9001), "{address}");
    }
    let counters = lab.pod.counters(&lab.datapath);
    assert_eq!((counters.bypassed, counters.inbound, counters.guard_drops), (2, 2, 0));
}

#[test]
fn an_inbound_port_is_no_way_out() {
    let lab = Exempted::new("xway", &inbound_ports(&[0x3039]));
    // Sent from the exempt port by a packet socket: this is no connection of the application.
    let mut sniffer = Sniffer::new(&lab.peer);
    let packet = ipv4(lab.lab.v4(2), lab.lab.v4(3), TCP, &tcp(PUSH_ACK, b"no-way-out"));
    send_frame(&lab.pod, &lab.peer, 0x0800, &packet);
    assert!(!sniffer.sees(b"no-way-out"));
    // A socket that connects from the exempt port is captured.
    let own = SocketAddr::new(lab.pod.v4, 0x3039);
    let peer = SocketAddr::new(lab.peer.v4, 80);
    let socket = lab.pod.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&own.into())?;
        socket.connect(&peer.into())?;
        Ok::<_, std::io::Error>(socket)
    });
    drop(socket.unwrap());
    let counters = lab.pod.counters(&lab.datapath);
    assert_eq!((counters.captured, counters.bypassed, counters.guard_drops), (1, 0, 1));
}

#[test]
fn a_direct_destination_is_reached_without_the_mesh_by_every_pod() {
    let lab = Exempted::new("xdirect", &PodExemptions::default());
    let destination = SocketAddr::new(lab.peer.v4, 5432);
    let fill = lab.datapath.set_direct(&[destination]).unwrap();
    assert_eq!((fill.wanted, fill.held), (1, 1));
    assert!(lab.goes_direct(lab.peer.v4, 5432));
    assert!(!lab.goes_direct(lab.peer.v4, 5433) && !lab.goes_direct(lab.peer.v6, 5432));
    lab.datapath.set_direct(&[SocketAddr::new(lab.peer.v6, 5432)]).unwrap();
    assert!(!lab.goes_direct(lab.peer.v4, 5432) && lab.goes_direct(lab.peer.v6, 5432));
    lab.datapath.set_direct(&[]).unwrap();
    assert!(!lab.goes_direct(lab.peer.v6, 5432));
}

#[test]
fn direct_destinations_that_do_not_fit_stay_in_the_mesh() {
    let lab = Exempted::new("xfull", &PodExemptions::default());
    let many: Vec<SocketAddr> = (0..17_000_u32)
        .map(|n| SocketAddr::new(Ipv4Addr::from_bits(0x0b00_0000 + n).into(), 80))
        .collect();
    let fill = lab.datapath.set_direct(&many).unwrap();
    assert_eq!((fill.wanted, fill.held, fill.capacity), (17_000, 16_384, 16_384));
    assert!(!lab.goes_direct(lab.peer.v4, 80));
}

#[test]
fn an_opt_out_that_is_taken_back_stops_what_it_had_let_through() {
    let lab = Exempted::new("xback", &outbound_ports(&[5432]));
    let listener = lab.peer.listen((lab.peer.v4, 5432));
    let mut client = lab.pod.connect((lab.peer.v4, 5432)).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    assert_talk(&client, &accepted);
    lab.exempt(&outbound_ports(&[5433]));
    client.write_all(b"late").unwrap();
    accepted.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    assert!(
        accepted.read(&mut [0; 4]).is_err(),
        "data of a connection that is not exempt any more"
    );
    assert!(lab.pod.counters(&lab.datapath).guard_drops > 0);
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop((client, listener));
    assert!(!lab.goes_direct(lab.peer.v4, 5432) && lab.goes_direct(lab.peer.v4, 5433));
}

#[test]
fn more_than_a_pod_has_room_for_changes_nothing() {
    let lab = Exempted::new("xmany", &outbound_ports(&[5432]));
    let many = outbound_ports(&(1..=65).collect::<Vec<_>>());
    let refused = lab.lab.on_node(|| lab.datapath.exempt(lab.pod.cookie(), &many));
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("64 ports"), "{error}");
    assert!(lab.goes_direct(lab.peer.v4, 5432) && !lab.goes_direct(lab.peer.v4, 64));
    // A pod that is enrolled with too many exemptions is captured all the same.
    let other = lab.lab.pod(4);
    let agent = other.agent(&lab.datapath, 1);
    let placed = other.enroll_exempt(&lab.lab, &lab.datapath, &agent, &many);
    assert!(placed.exempt.is_err());
    other.connect((lab.peer.v4, 64)).unwrap();
    agent.one().out_v4.accept().unwrap();
}

#[test]
fn exemptions_outlive_the_agent_and_die_with_the_pod() {
    let lab = Exempted::new("xlife", &outbound_ports(&[5432]));
    let Exempted { lab, datapath, pod, peer, agent } = lab;
    drop(datapath);
    let datapath = lab.open();
    let lab = Exempted { lab, datapath, pod, peer, agent };
    assert!(lab.goes_direct(lab.peer.v4, 5432) && !lab.goes_direct(lab.peer.v4, 5433));
    lab.datapath.withdraw(lab.pod.cookie()).unwrap();
    let next = lab.lab.pod(4);
    let agent = next.agent(&lab.datapath, 1);
    // The new pod has the same slot and the same kind of exemption, but not its predecessor's
    // ports.
    let placed = next.enroll_exempt(&lab.lab, &lab.datapath, &agent, &outbound_ports(&[6000]));
    assert_eq!(placed.slot, 1);
    next.connect((lab.peer.v4, 5432)).unwrap();
    agent.one().out_v4.accept().unwrap();
}
