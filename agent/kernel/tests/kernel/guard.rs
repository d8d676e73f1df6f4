//! The guard: what evades the connect hooks does not reach a peer in plaintext.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use sluice_kernel::Datapath;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{
    lab::{AgentSockets, Lab, Pod, set_peers},
    wire::{
        ACK, PUSH_ACK, RST, SYN, Sniffer, TCP, UDP, ipv4, ipv6, raw_socket, send_frame, send_raw,
        tcp, udp,
    },
};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// An enrolled pod, and a peer on the same bridge that is not enrolled and so sees what arrives.
struct Guarded {
    lab: Lab,
    datapath: Datapath,
    pod: Pod,
    peer: Pod,
    _agent: AgentSockets,
}

impl Guarded {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let datapath = lab.open();
        let (pod, peer) = (lab.pod(2), lab.pod(3));
        set_peers(&datapath, &[pod.v4, pod.v6, peer.v4, peer.v6]);
        let agent = pod.capture(&lab, &datapath);
        Self { lab, datapath, pod, peer, _agent: agent }
    }

    fn own(&self) -> Ipv4Addr {
        self.lab.v4(2)
    }

    fn other(&self) -> Ipv4Addr {
        self.lab.v4(3)
    }

    fn drops(&self) -> u64 {
        self.pod.counters(&self.datapath).guard_drops
    }

    /// Whether the packet that `send` sends, and that carries `marker`, arrives. If not, it must be
    /// counted as dropped.
    fn arrives(&self, marker: &[u8], send: impl FnOnce()) -> bool {
        let before = self.drops();
        let mut sniffer = Sniffer::new(&self.peer);
        send();
        let arrived = sniffer.sees(marker);
        let dropped = self.drops() > before;
        assert_ne!(arrived, dropped, "a packet either arrives or is counted as dropped");
        arrived
    }
}

#[test]
fn tcp_data_from_a_raw_socket_is_stopped() {
    let lab = Guarded::new("raw");
    let socket = raw_socket(&lab.pod);
    let packet = ipv4(lab.own(), lab.other(), TCP, &tcp(PUSH_ACK, b"raw-plaintext"));
    assert!(!lab.arrives(b"raw-plaintext", || send_raw(&socket, lab.other(), &packet)));
}

#[test]
fn a_mark_that_an_application_can_set_opens_nothing() {
    let lab = Guarded::new("forged");
    let socket = raw_socket(&lab.pod);
    for mark in [1, 0x539, 0xffff_ffff] {
        socket.set_mark(mark).unwrap();
        let packet = ipv4(lab.own(), lab.other(), TCP, &tcp(PUSH_ACK, b"marked-plaintext"));
        assert!(!lab.arrives(b"marked-plaintext", || send_raw(&socket, lab.other(), &packet)));
    }
}

#[test]
fn frames_from_a_packet_socket_are_stopped() {
    let lab = Guarded::new("frame");
    let (IpAddr::V6(own), IpAddr::V6(other)) = (lab.pod.v6, lab.peer.v6) else {
        unreachable!("the pods' IPv6 addresses")
    };
    let v4 = ipv4(lab.own(), lab.other(), TCP, &tcp(PUSH_ACK, b"frame-plaintext"));
    let v6 = ipv6(own, other, TCP, &tcp(PUSH_ACK, b"frame-plaintext"));
    let datagram = ipv4(lab.own(), lab.other(), UDP, &udp(b"frame-plaintext"));
    let hop_by_hop = ipv6(
        own,
        other,
        0,
        &[&[TCP, 0, 1, 4, 0, 0, 0, 0], &tcp(PUSH_ACK, b"frame-plaintext")[..]].concat(),
    );
    // A fragment header: what follows, reserved, offset 0 and more to come, an identification.
    let hidden = |next_header: u8| {
        let header = [next_header, 0, 0, 1, 0, 0, 0, 1];
        ipv6(own, other, 44, &[&header, &tcp(PUSH_ACK, b"frame-plaintext!")[..]].concat())
    };
    let (fragment_of_tcp, fragment_of_options) = (hidden(TCP), hidden(60));
    let mut fragment = ipv4(lab.own(), lab.other(), TCP, b"frame-plaintext!");
    fragment[6] = 0x20;
    let mut options = ipv4(lab.own(), lab.other(), TCP, &tcp(PUSH_ACK, b"frame-plaintext"));
    options[0] = 0x46;
    let mut tagged = vec![0, 7, 0x08, 0x00];
    tagged.extend(&v4);
    for (what, ethertype, payload) in [
        ("IPv4", ETHERTYPE_IPV4, &v4),
        ("IPv6", ETHERTYPE_IPV6, &v6),
        ("UDP without a UDP socket", ETHERTYPE_IPV4, &datagram),
        ("IPv6 with an extension header", ETHERTYPE_IPV6, &hop_by_hop),
        ("a fragment", ETHERTYPE_IPV4, &fragment),
        ("a fragment of IPv6", ETHERTYPE_IPV6, &fragment_of_tcp),
        ("a fragment of IPv6 with options", ETHERTYPE_IPV6, &fragment_of_options),
        ("IPv4 with options", ETHERTYPE_IPV4, &options),
        ("a VLAN tag", 0x8100, &tagged),
        ("a provider's VLAN tag", 0x88a8, &tagged),
        ("MPLS", 0x8847, &v4),
        ("another ethernet type", 0x88b5, &v4),
        ("IPv6 called IPv4", ETHERTYPE_IPV4, &v6),
    ] {
        assert!(
            !lab.arrives(b"frame-plaintext", || send_frame(
                &lab.pod, &lab.peer, ethertype, payload
            )),
            "{what}"
        );
    }
}

#[test]
fn another_pods_address_cannot_be_borrowed_for_a_peer() {
    let lab = Guarded::new("borrow");
    for (flags, data) in [(ACK, &b""[..]), (RST, b""), (PUSH_ACK, b"x")] {
        let before = lab.drops();
        let packet = ipv4(lab.lab.v4(9), lab.other(), TCP, &tcp(flags, data));
        send_frame(&lab.pod, &lab.peer, ETHERTYPE_IPV4, &packet);
        assert_eq!(lab.drops(), before + 1, "flags {flags:#x}");
    }
}

#[test]
fn segments_without_data_pass_but_bare_syns_do_not() {
    let lab = Guarded::new("empty");
    // The last bytes of the options tell the segments apart; they are not data.
    let segment = |flags, marker: u32| {
        let mut segment = tcp(flags, &[]);
        segment[12] = 0x70;
        segment.extend([1, 1, 1, 1]);
        segment.extend(marker.to_be_bytes());
        ipv4(lab.own(), lab.other(), TCP, &segment)
    };
    for (flags, passes) in
        [(ACK, true), (RST, true), (SYN | ACK, true), (0x11, true), (SYN, false), (SYN | 1, false)]
    {
        let marker = 0x7355_0000 | u32::from(flags);
        let packet = segment(flags, marker);
        let arrived = lab.arrives(&marker.to_be_bytes(), || {
            send_frame(&lab.pod, &lab.peer, ETHERTYPE_IPV4, &packet);
        });
        assert_eq!(arrived, passes, "flags {flags:#x}");
    }
}

#[test]
fn udp_sockets_may_talk_to_peers_and_are_counted() {
    let lab = Guarded::new("udp");
    for (own, other) in [(lab.pod.v4, lab.peer.v4), (lab.pod.v6, lab.peer.v6)] {
        let server = lab.peer.run(|| UdpSocket::bind((other, 5353))).unwrap();
        let client = lab.pod.run(|| UdpSocket::bind((own, 0))).unwrap();
        // The second size exceeds the link's MTU: fragments have the socket too.
        for size in [10, 4000] {
            client.send_to(&vec![7; size], (other, 5353)).unwrap();
            server.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            let mut data = [0; 5000];
            assert_eq!(server.recv_from(&mut data).unwrap().0, size, "{other}");
        }
    }
    let counters = lab.pod.counters(&lab.datapath);
    assert_eq!(counters.guard_drops, 0);
    assert_eq!(counters.udp, 2 * (1 + 3), "a datagram of 4000 bytes goes in three fragments");
}

#[test]
fn pings_pass() {
    let lab = Guarded::new("ping");
    for (domain, protocol, other, request) in [
        (Domain::IPV4, Protocol::ICMPV4, lab.peer.v4, 8),
        (Domain::IPV6, Protocol::ICMPV6, lab.peer.v6, 128),
    ] {
        let mut socket = lab.pod.run(|| Socket::new(domain, Type::RAW, Some(protocol))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // A type, a code, a checksum (IPv6's the kernel fills in), an id, a sequence number; the second one is larger
        // than the link's MTU.
        for size in [8, 4000] {
            let mut echo = vec![request, 0, 0xf7, 0xfd, 0, 1, 0, 1];
            echo.resize(size, 0);
            socket.send_to(&echo, &SocketAddr::new(other, 0).into()).unwrap();
            // What else of ICMPv6 comes is of neighbour discovery.
            let mut answer = [0; 5000];
            while socket.read(&mut answer).expect("no answer") < size {}
        }
    }
    assert_eq!(lab.drops(), 0);
}

#[test]
fn a_connection_from_before_the_peer_was_known_carries_no_more_data_but_may_be_reset() {
    let lab = Guarded::new("before");
    set_peers(&lab.datapath, &[]);
    let listener = lab.peer.listen((lab.peer.v4, 8080));
    let mut client = lab.pod.connect((lab.peer.v4, 8080)).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    client.write_all(b"early").unwrap();
    let mut data = [0; 5];
    accepted.read_exact(&mut data).unwrap();
    set_peers(&lab.datapath, &[lab.pod.v4, lab.peer.v4]);
    client.write_all(b"late").unwrap();
    accepted.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let late = accepted.read(&mut data).unwrap_err();
    assert!(matches!(late.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{late}");
    assert!(lab.drops() > 0);
    SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    accepted.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    assert_eq!(accepted.read(&mut data).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_syn_of_a_socket_that_is_not_the_agents_is_stopped() {
    let lab = Guarded::new("syn");
    set_peers(&lab.datapath, &[]);
    // The socket has begun to connect, to a peer that is down, before the mesh knew the address.
    let mut sniffer = Sniffer::new(&lab.peer);
    know_neighbour(&lab);
    lab.lab.set_link(&lab.peer, "down");
    let socket =
        lab.pod.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))).unwrap();
    socket.set_nonblocking(true).unwrap();
    let peer = SocketAddr::new(lab.peer.v4, 8080);
    assert!(lab.pod.run(|| socket.connect(&peer.into())).is_err(), "in progress");
    set_peers(&lab.datapath, &[lab.pod.v4, lab.peer.v4]);
    lab.lab.set_link(&lab.peer, "up");
    let before = lab.drops();
    let own = socket.local_addr().unwrap().as_socket().unwrap().port();
    let ports = [own.to_be_bytes(), peer.port().to_be_bytes()].concat();
    assert!(!sniffer.sees_within(Duration::from_millis(3500), &ports), "a SYN went through");
    assert!(lab.drops() > before);
}

/// Gives the pod a permanent entry for its neighbour's hardware address.
fn know_neighbour(lab: &Guarded) {
    let neighbour = lab.peer.hardware_address();
    lab.pod
        .namespace
        .ip(&format!("neigh replace {} lladdr {neighbour} dev eth0 nud permanent", lab.peer.v4));
}

#[test]
fn neighbour_discovery_and_everything_elsewhere_pass() {
    let lab = Guarded::new("elsewhere");
    let stranger = lab.lab.pod(4);
    for address in [stranger.v4, stranger.v6] {
        let listener = stranger.listen((address, 8080));
        let mut client = lab.pod.connect((address, 8080)).unwrap();
        client.write_all(b"plain").unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        let mut data = [0; 5];
        accepted.read_exact(&mut data).unwrap();
    }
    // Connections from the peer are as before: they reach the pod's agent.
    let client: TcpStream = lab.peer.connect((lab.pod.v6, 8080)).unwrap();
    drop(client);
    let multicast = lab.pod.run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))).unwrap();
    SockRef::from(&multicast).set_multicast_if_v6(lab.pod.interface()).unwrap();
    multicast.send_to(b"hello", "[ff02::1]:9").unwrap();
    assert_eq!(lab.drops(), 0);
}
