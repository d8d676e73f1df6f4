//! Outbound: what is captured, with the right destination, and what is left alone.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use sluice_kernel::{Datapath, Feature};
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{AgentSockets, Lab, Pod, is_refused, port, set_peers};

/// An enrolled pod, on a node that knows one peer, at whose addresses nobody answers.
struct Captured {
    lab: Lab,
    datapath: Datapath,
    pod: Pod,
    agent: AgentSockets,
    peer_v4: SocketAddr,
    peer_v6: SocketAddr,
}

impl Captured {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let datapath = lab.open();
        let pod = lab.pod(2);
        let (peer_v4, peer_v6) = (IpAddr::from(lab.v4(77)), IpAddr::from(lab.v6(77)));
        set_peers(&datapath, &[peer_v4, peer_v6, pod.v4, pod.v6]);
        let agent = pod.capture(&lab, &datapath);
        Self {
            lab,
            datapath,
            pod,
            agent,
            peer_v4: (peer_v4, 8080).into(),
            peer_v6: (peer_v6, 8080).into(),
        }
    }

    /// Accepts at the agent's listener, and reads the original destination.
    fn accept(&self, listener: &TcpListener) -> (TcpStream, Option<SocketAddr>) {
        let (accepted, _) = listener.accept().unwrap();
        let original = self.datapath.sockets().original_destination(&accepted).unwrap();
        (accepted, original)
    }

    fn socket(&self, domain: Domain, protocol: Protocol) -> Socket {
        self.pod.run(|| Socket::new(domain, Type::STREAM, Some(protocol))).unwrap()
    }
}

fn peer(socket: &Socket) -> SocketAddr {
    socket.peer_addr().unwrap().as_socket().unwrap()
}

#[test]
fn an_ipv4_connection_is_captured_and_the_application_sees_its_peer_and_its_own_address() {
    let lab = Captured::new("v4");
    let client = lab.pod.connect(lab.peer_v4).unwrap();
    let (accepted, original) = lab.accept(&lab.agent.one().out_v4);
    assert_eq!(original, Some(lab.peer_v4));
    assert_eq!(client.peer_addr().unwrap(), lab.peer_v4);
    assert_eq!(client.local_addr().unwrap().ip(), lab.pod.v4);
    assert_eq!(
        accepted.peer_addr().unwrap(),
        client.local_addr().unwrap(),
        "the agent sees what is there"
    );
    assert_eq!(lab.pod.counters(&lab.datapath).captured, 1);
}

#[test]
fn an_ipv6_connection_is_captured() {
    let lab = Captured::new("v6");
    let client = lab.pod.connect(lab.peer_v6).unwrap();
    let (accepted, original) = lab.accept(&lab.agent.one().out_v6);
    assert_eq!(original, Some(lab.peer_v6));
    assert_eq!(client.peer_addr().unwrap(), lab.peer_v6);
    let own = client.local_addr().unwrap();
    assert_eq!(own.ip(), lab.pod.v6);
    let there = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), own.port());
    assert_eq!(accepted.peer_addr().unwrap(), there, "the agent sees what is there");
}

#[test]
fn a_mapped_connection_of_a_dual_stack_socket_is_captured_as_ipv4() {
    let lab = Captured::new("mapped");
    let IpAddr::V4(v4) = lab.peer_v4.ip() else { unreachable!("made from an IPv4 address") };
    let mapped = SocketAddr::from((v4.to_ipv6_mapped(), 8080));
    let client = lab.pod.connect(mapped).unwrap();
    let (_accepted, original) = lab.accept(&lab.agent.one().out_v4);
    assert_eq!(original, Some(lab.peer_v4));
    assert_eq!(client.peer_addr().unwrap(), mapped);
    let IpAddr::V4(own) = lab.pod.v4 else { unreachable!("the pod's IPv4 address") };
    assert_eq!(client.local_addr().unwrap().ip(), own.to_ipv6_mapped());
}

#[test]
fn a_non_blocking_connection_shows_its_peer_at_once() {
    let lab = Captured::new("nonblock");
    let socket = lab.socket(Domain::IPV4, Protocol::TCP);
    socket.set_nonblocking(true).unwrap();
    match lab.pod.run(|| socket.connect(&lab.peer_v4.into())) {
        Ok(()) => {}
        Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS)),
    }
    let (_accepted, original) = lab.accept(&lab.agent.one().out_v4);
    assert_eq!(original, Some(lab.peer_v4));
    assert_eq!(peer(&socket), lab.peer_v4);
}

#[test]
fn a_fast_open_connection_is_captured_with_its_data() {
    let lab = Captured::new("tfo");
    let socket = lab.socket(Domain::IPV4, Protocol::TCP);
    let sent =
        socket.send_to_with_flags(b"hello", &lab.peer_v4.into(), libc::MSG_FASTOPEN).unwrap();
    assert_eq!(sent, 5);
    let (mut accepted, original) = lab.accept(&lab.agent.one().out_v4);
    assert_eq!(original, Some(lab.peer_v4));
    let mut data = [0; 5];
    accepted.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"hello");
    assert_eq!(peer(&socket), lab.peer_v4);
}

#[test]
fn a_connection_bound_to_a_device_is_captured() {
    let lab = Captured::new("device");
    let socket = lab.socket(Domain::IPV4, Protocol::TCP);
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.connect_timeout(&lab.peer_v4.into(), Duration::from_secs(2)).unwrap();
    let (_accepted, original) = lab.accept(&lab.agent.one().out_v4);
    assert_eq!(original, Some(lab.peer_v4));
}

#[test]
fn an_mptcp_connection_is_captured_and_shows_its_peer_and_its_own_address() {
    let lab = Captured::new("mptcp");
    let is_known = !lab.lab.lacks(Feature::Mptcp);
    let agent = lab.agent.one();
    let v4 = (lab.pod.v4, lab.peer_v4, &agent.out_v4);
    let v6 = (lab.pod.v6, lab.peer_v6, &agent.out_v6);
    for (own, dialled, listener) in [v4, v6] {
        let socket = lab.socket(Domain::for_address(dialled), Protocol::MPTCP);
        socket.connect(&dialled.into()).unwrap();
        let (_accepted, original) = lab.accept(listener);
        assert_eq!(original, Some(dialled));
        // Before Linux 5.19 the hooks cannot tell which MPTCP connection a subflow belongs to.
        if !is_known {
            continue;
        }
        assert_eq!(peer(&socket), dialled);
        assert_eq!(socket.local_addr().unwrap().as_socket().unwrap().ip(), own);
    }
}

#[test]
fn a_connection_from_a_bound_port_is_captured() {
    let lab = Captured::new("bound");
    let agent = lab.agent.one();
    let v4 = (lab.pod.v4, Ipv4Addr::UNSPECIFIED.into(), lab.peer_v4, &agent.out_v4);
    let v6 = (lab.pod.v6, Ipv6Addr::UNSPECIFIED.into(), lab.peer_v6, &agent.out_v6);
    for (pod, unspecified, peer, listener) in [v4, v6] {
        for own in [pod, unspecified] {
            let socket = lab.socket(Domain::for_address(peer), Protocol::TCP);
            socket.bind(&SocketAddr::new(own, 0).into()).unwrap();
            let bound = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(bound.ip(), own, "nothing is captured yet");
            socket.connect(&peer.into()).unwrap();
            let (accepted, original) = lab.accept(listener);
            assert_eq!(original, Some(peer), "bound to {own}");
            assert_eq!(accepted.peer_addr().unwrap().port(), bound.port(), "bound to {own}");
            let shown = socket.local_addr().unwrap().as_socket().unwrap();
            assert_eq!(shown, SocketAddr::new(pod, bound.port()), "bound to {own}");
        }
    }
    assert_eq!(lab.pod.counters(&lab.datapath).errors, 0);
}

#[test]
fn the_agents_own_socket_goes_where_it_is_sent() {
    let lab = Captured::new("bypass");
    let server = lab.lab.pod(3);
    let listener = server.listen((server.v4, 9000));
    set_peers(&lab.datapath, &[server.v4]);
    let socket = lab.socket(Domain::IPV4, Protocol::TCP);
    lab.datapath.sockets().mark_upstream(&socket).unwrap();
    socket.connect(&SocketAddr::from((server.v4, 9000)).into()).unwrap();
    let (mut accepted, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), lab.pod.v4);
    // The guard lets the agent's data pass too.
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"sealed").unwrap();
    let mut data = [0; 6];
    accepted.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"sealed");
    let counters = lab.pod.counters(&lab.datapath);
    assert_eq!((counters.captured, counters.guard_drops), (0, 0));
}

#[test]
fn loopback_and_the_pods_own_addresses_stay_inside() {
    let lab = Captured::new("home");
    let listener = lab.pod.listen((Ipv6Addr::UNSPECIFIED, 0));
    let port = port(&listener);
    let homes: [IpAddr; 4] =
        [[127, 0, 0, 1].into(), lab.pod.v4, Ipv6Addr::LOCALHOST.into(), lab.pod.v6];
    for home in homes {
        let client = lab.pod.connect((home, port)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(client.peer_addr().unwrap(), (home, port).into());
        assert_eq!(lab.datapath.sockets().original_destination(&accepted).unwrap(), None);
    }
    let counters = lab.pod.counters(&lab.datapath);
    assert_eq!((counters.captured, counters.direct), (0, 0));
}

#[test]
fn what_the_mesh_does_not_know_is_left_alone_and_counted() {
    let lab = Captured::new("direct");
    let stranger = lab.lab.pod(4);
    let listener = stranger.listen((stranger.v4, 9000));
    let mut client = lab.pod.connect((stranger.v4, 9000)).unwrap();
    let (mut accepted, from) = listener.accept().unwrap();
    assert_eq!(from, client.local_addr().unwrap());
    client.write_all(b"plain").unwrap();
    let mut data = [0; 5];
    accepted.read_exact(&mut data).unwrap();
    let counters = lab.pod.counters(&lab.datapath);
    assert_eq!((counters.captured, counters.direct, counters.guard_drops), (0, 1, 0));
}

#[test]
fn everything_is_captured_once_the_peers_do_not_fit() {
    let lab = Captured::new("overflow");
    let stranger: SocketAddr = "192.0.2.1:80".parse().unwrap();
    let capacity = lab.lab.settings().max_peers;
    let many =
        (0..=capacity).map(|peer| IpAddr::from((0x0a09_0000 + peer).to_be_bytes())).collect();
    let fill = lab.datapath.set_peers(&many).unwrap();
    assert!(fill.capture_all && fill.nearly_full());
    assert_eq!((fill.wanted, fill.held), (fill.capacity + 1, fill.capacity));
    let client = lab.pod.connect(stranger).unwrap();
    let (_accepted, original) = lab.accept(&lab.agent.one().out_v4);
    assert_eq!(original, Some(stranger));
    drop(client);
    let fill = lab.datapath.set_peers(&[lab.peer_v4.ip()].into()).unwrap();
    assert!(!fill.capture_all && !fill.nearly_full());
    assert_eq!(fill.held, 1);
    let listener = lab.lab.pod(5);
    let plain = listener.listen((listener.v4, 9000));
    lab.pod.connect((listener.v4, 9000)).unwrap();
    plain.accept().unwrap();
}

#[test]
fn without_a_listener_a_connection_is_refused_at_once() {
    let Captured { lab, datapath, pod, agent, peer_v4, peer_v6 } = Captured::new("gone");
    drop(agent);
    assert!(is_refused(|| pod.connect(peer_v4)) && is_refused(|| pod.connect(peer_v6)));
    let began = Instant::now();
    for peer in [peer_v4, peer_v6] {
        assert_eq!(pod.connect(peer).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert!(began.elapsed() < Duration::from_millis(100), "took {:?}", began.elapsed());
    drop((datapath, lab));
}

#[test]
fn a_socket_that_connects_anew_forgets_its_captured_destination() {
    let lab = Captured::new("anew");
    let socket = lab.socket(Domain::IPV4, Protocol::TCP);
    socket.connect(&lab.peer_v4.into()).unwrap();
    lab.accept(&lab.agent.one().out_v4);
    rustix::net::connect_unspec(&socket).unwrap();
    let listener = lab.pod.listen(([127, 0, 0, 1], 0));
    socket.connect(&listener.local_addr().unwrap().into()).unwrap();
    assert_eq!(peer(&socket), listener.local_addr().unwrap());
    let (accepted, _) = listener.accept().unwrap();
    assert_eq!(lab.datapath.sockets().original_destination(accepted).unwrap(), None);
}

#[test]
fn a_connection_straight_to_the_agents_listener_has_no_destination() {
    let lab = Captured::new("straight");
    let listener = &lab.agent.one().out_v4;
    let client = lab.pod.connect(listener.local_addr().unwrap()).unwrap();
    let (_accepted, original) = lab.accept(listener);
    assert_eq!(original, None);
    drop(client);
}

#[test]
fn a_mark_that_an_application_can_set_changes_nothing() {
    let lab = Captured::new("somark");
    let socket = lab.socket(Domain::IPV4, Protocol::TCP);
    socket.set_mark(0x539).unwrap();
    socket.connect(&lab.peer_v4.into()).unwrap();
    let (_accepted, original) = lab.accept(&lab.agent.one().out_v4);
    assert_eq!(original, Some(lab.peer_v4));
}

#[test]
fn each_cpu_has_its_worker() {
    let lab = Lab::new("workers");
    let datapath = lab.open();
    let pod = lab.pod(2);
    let peer = IpAddr::from(lab.v4(77));
    set_peers(&datapath, &[peer]);
    let agent = pod.agent(&datapath, 2);
    pod.enroll(&lab, &datapath, &agent);
    let cpus = std::thread::available_parallelism().unwrap().get();
    for cpu in 0..cpus.min(4) {
        let _client = pod.run(|| {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(None, &set).unwrap();
            TcpStream::connect((peer, 80))
        });
        let listener = &agent.workers[cpu % 2].out_v4;
        listener.set_nonblocking(true).unwrap();
        let (accepted, _) =
            listener.accept().expect("the connection is with the worker of its CPU");
        let original = datapath.sockets().original_destination(accepted).unwrap();
        assert_eq!(original, Some((peer, 80).into()));
    }
}
