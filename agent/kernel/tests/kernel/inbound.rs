//! Inbound: connections that reach a pod go to the agent, and the application sees who is behind it.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use sluice_kernel::Datapath;
use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{AgentSockets, Lab, Pod, is_refused, set_peers};

struct Steered {
    lab: Lab,
    datapath: Datapath,
    server: Pod,
    client: Pod,
    agent: AgentSockets,
}

impl Steered {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name);
        let datapath = lab.open();
        let (server, client) = (lab.pod(2), lab.pod(3));
        set_peers(&datapath, &[server.v4, server.v6, client.v4, client.v6]);
        let agent = server.capture(&lab, &datapath);
        Self { lab, datapath, server, client, agent }
    }

    /// Connects to an application in the pod as the agent does, on behalf of `client`.
    fn deliver(&self, to: SocketAddr, client: SocketAddr) -> std::io::Result<Socket> {
        self.server.run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            self.datapath.sockets().mark_delivery(&socket, client).unwrap();
            socket.connect(&to.into())?;
            Ok(socket)
        })
    }
}

#[test]
fn connections_from_outside_go_to_the_listener_of_their_family_whatever_the_port() {
    let lab = Steered::new("steer");
    let _application = lab.server.listen((lab.server.v4, 8080));
    for port in [8080, 9999] {
        let client = lab.client.connect((lab.server.v4, port)).unwrap();
        let (accepted, from) = lab.agent.one().in_v4.accept().unwrap();
        assert_eq!(from, client.local_addr().unwrap());
        assert_eq!(
            accepted.local_addr().unwrap(),
            (lab.server.v4, port).into(),
            "no lookup is needed"
        );
    }
    let client = lab.client.connect((lab.server.v6, 8080)).unwrap();
    let (accepted, from) = lab.agent.one().in_v6.accept().unwrap();
    assert_eq!(from, client.local_addr().unwrap());
    assert_eq!(accepted.local_addr().unwrap(), (lab.server.v6, 8080).into());
    assert_eq!(lab.server.counters(&lab.datapath).inbound, 3);
}

#[test]
fn an_accepted_connection_is_born_marked_so_that_its_answers_pass_the_guard() {
    use std::io::{Read, Write};
    let lab = Steered::new("answers");
    let mut client = lab.client.connect((lab.server.v4, 8080)).unwrap();
    let (mut accepted, _) = lab.agent.one().in_v4.accept().unwrap();
    accepted.write_all(b"answer").unwrap();
    let mut data = [0; 6];
    client.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"answer");
    assert_eq!(lab.server.counters(&lab.datapath).guard_drops, 0);
}

#[test]
fn the_application_sees_the_client_in_accept_and_getpeername() {
    let lab = Steered::new("deliver");
    let v4_client: SocketAddr = "203.0.113.9:51000".parse().unwrap();
    let v6_client: SocketAddr = "[2001:db8::9]:51001".parse().unwrap();
    let mapped: SocketAddr = "[::ffff:203.0.113.9]:51000".parse().unwrap();
    let any = IpAddr::from(Ipv6Addr::UNSPECIFIED);
    let cases = [
        (lab.server.v4, lab.server.v4, v4_client, v4_client),
        (Ipv4Addr::UNSPECIFIED.into(), lab.server.v4, v4_client, v4_client),
        (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into(), v4_client, v4_client),
        (any, lab.server.v4, v4_client, mapped),
        (any, lab.server.v6, v6_client, v6_client),
        (lab.server.v6, lab.server.v6, v6_client, v6_client),
        (lab.server.v6, lab.server.v6, v4_client, mapped),
        (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into(), v6_client, v6_client),
    ];
    for (listens, dialled, client, seen) in cases {
        let application = lab.server.listen((listens, 0));
        let to = SocketAddr::new(dialled, application.local_addr().unwrap().port());
        let delivery = lab.deliver(to, client).unwrap();
        let (accepted, from) = application.accept().unwrap();
        assert_eq!(from, seen, "accept at {listens} for {client}");
        assert_eq!(accepted.peer_addr().unwrap(), seen, "getpeername at {listens} for {client}");
        let agent_sees = delivery.peer_addr().unwrap().as_socket().unwrap();
        assert_eq!(agent_sees, to, "the agent sees what is there");
    }
    assert_eq!(lab.server.counters(&lab.datapath).errors, 0);
}

#[test]
fn ordinary_connections_inside_the_pod_keep_their_peers() {
    let lab = Steered::new("inside");
    let application = lab.server.listen((lab.server.v4, 0));
    let client = lab.server.connect(application.local_addr().unwrap()).unwrap();
    let (_accepted, from) = application.accept().unwrap();
    assert_eq!(from, client.local_addr().unwrap());
}

#[test]
fn without_a_listener_connections_from_outside_are_refused_at_once() {
    let Steered { lab, datapath, server, client, agent } = Steered::new("refuse");
    let application = server.listen((server.v4, 8080));
    drop(agent);
    assert!(
        is_refused(|| client.connect((server.v4, 8080)))
            && is_refused(|| client.connect((server.v6, 8080)))
    );
    let before = server.counters(&datapath).inbound_dropped;
    let began = Instant::now();
    for address in [server.v4, server.v6] {
        let error = client.connect((address, 8080)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}");
    }
    assert!(began.elapsed() < Duration::from_millis(500), "took {:?}", began.elapsed());
    assert_eq!(server.counters(&datapath).inbound_dropped, before + 2);
    drop((application, lab));
}

#[test]
fn an_address_of_the_pod_that_nobody_enrolled_is_refused() {
    let lab = Steered::new("stray");
    let stray = lab.lab.v4(66);
    lab.server.namespace.ip(&format!("addr add {stray}/24 dev eth0"));
    let _application = lab.server.listen((stray, 8080));
    let before = lab.datapath.unattributed().unwrap().inbound_dropped;
    let connect = || {
        let time = Duration::from_millis(900);
        lab.client.run(|| TcpStream::connect_timeout(&(stray, 8080).into(), time).map(drop))
    };
    // The guard drops the refusal because it comes from an address that is not the pod's, so no
    // mesh peer gets it.
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::TimedOut);
    set_peers(&lab.datapath, &[lab.server.v4, lab.server.v6]);
    assert_eq!(connect().unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert!(lab.datapath.unattributed().unwrap().inbound_dropped >= before + 2);
}
