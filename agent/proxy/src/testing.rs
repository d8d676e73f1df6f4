//! Real sockets and real mutual TLS for tests of what carries connections.

use std::{
    future::poll_fn,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use sluice_mesh::WorkloadUid;
use sluice_pods::LocalPod;
use sluice_spiffe::{SpiffeId, WorkloadName};
use sluice_sys::{
    Netns, socket,
    tcp::{TcpListener, TcpStream},
};
use sluice_tls::{CertStore, Channel, Settings, SystemClock, TrustBundle, ca::LocalCa};
use sluice_wire::Control;

use crate::{
    live::{Direction, Facts, Live, Transport},
    local::Links,
    pool::Key,
    session::Session,
};

/// More than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Returns the two ends of a connection: an application's and the agent's.
pub(crate) async fn tcp_pair() -> (tokio::net::TcpStream, TcpStream) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = socket::listen(address, 1).unwrap();
    let address = listener.local_addr().unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let application = tokio::net::TcpStream::connect(address).await.unwrap();
    application.set_nodelay(true).unwrap();
    (application, listener.accept().await.unwrap().0)
}

/// Returns the two ends of one session with an open stream, as if in two processes.
pub(crate) async fn session_pair() -> (Session, Session) {
    let (near, mut far) = sessions(&Arc::default(), &Arc::default()).await;
    assert!(near.link.is_none() && far.link.is_none());
    opened(&mut far).await;
    (near, far)
}

/// Returns the two ends of one session, whose client knows the links `near` and whose server knows `far`.
pub(crate) async fn sessions(near: &Arc<Links>, far: &Arc<Links>) -> (Session, Session) {
    let directory = tempfile::tempdir().unwrap();
    let domain: sluice_spiffe::TrustDomain = "cluster.local".parse().unwrap();
    let ca =
        LocalCa::embedded(&directory.path().join("ca"), &domain, Arc::new(SystemClock)).unwrap();
    let bundle = TrustBundle::new(domain, ca.roots().to_vec()).unwrap();
    let store = CertStore::new(Settings::default(), Arc::new(ca), bundle, Arc::new(SystemClock));
    let client_id: SpiffeId = "spiffe://cluster.local/ns/a/sa/client".parse().unwrap();
    let server_id: SpiffeId = "spiffe://cluster.local/ns/a/sa/server".parse().unwrap();
    store.want(&client_id);
    store.want(&server_id);
    let client_identity = store.wait(&client_id, PATIENCE).await.unwrap();
    let server_identity = store.wait(&server_id, PATIENCE).await.unwrap();
    let (client_tcp, server_tcp) = tcp_pair().await;
    let address = client_tcp.peer_addr().unwrap().ip();
    let client_tcp = TcpStream::from_std(client_tcp.into_std().unwrap()).unwrap();
    let connect = Channel::connect(&client_identity, &server_id, address).unwrap();
    let accept = Channel::accept(&server_identity).unwrap();
    // The client's last flight leaves with its first stream, which the server's handshake therefore needs to finish.
    let links = Arc::clone(far);
    let server = tokio::spawn(async move {
        Session::handshake(server_tcp, accept, &server_identity, &links, Vec::new()).await
    });
    let mut client =
        Session::handshake(client_tcp, connect, &client_identity, near, Vec::new()).await.unwrap();
    client.queue(&Control::open(([127, 0, 0, 1], 4000).into())).unwrap();
    poll_fn(|cx| client.poll_flush(cx)).await.unwrap();
    let server = server.await.unwrap().unwrap();
    assert_eq!((&client.peer.id, &server.peer.id), (&server_id, &client_id));
    (client, server)
}

/// Takes the next stream's OPEN from the session.
pub(crate) async fn opened(server: &mut Session) {
    server.next_stream().await.unwrap();
}

/// Returns a pod in the namespace of the test.
pub(crate) fn local_pod() -> LocalPod {
    let netns = Netns::current().unwrap();
    LocalPod {
        uid: WorkloadUid("a/pod".into()),
        name: "pod".to_owned(),
        account: WorkloadName { namespace: "a".to_owned(), service_account: "b".to_owned() },
        identity: "spiffe://cluster.local/ns/a/sa/b".parse().unwrap(),
        addresses: Vec::new(),
        cookie: netns.cookie(),
        netns,
        guard_ifindexes: Vec::new(),
        enrolled_at: SystemTime::now(),
    }
}

/// Returns who uses sessions to a port.
pub(crate) fn key(port: u16) -> Key {
    let identity = "spiffe://cluster.local/ns/a/sa/b";
    Key {
        pod: WorkloadUid("a/b".into()),
        source_identity: identity.parse().unwrap(),
        source: [10, 0, 0, 1].into(),
        destination: ([10, 0, 0, 2], port).into(),
        expected: identity.parse().unwrap(),
    }
}

/// Returns a record for a relay to report to.
pub(crate) fn live() -> Live {
    let address = ([127, 0, 0, 1], 1).into();
    Live::new(Facts {
        direction: Direction::Outbound,
        transport: Transport::MutualTls,
        pod: WorkloadUid("a/client".into()),
        source: address,
        source_identity: None,
        requested: address,
        destination: address,
        destination_identity: None,
    })
}

/// Returns bytes that differ from place to place.
pub(crate) fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|position| u8::try_from((position * 31 + seed) % 251).unwrap()).collect()
}

/// Returns the size of the task that carries a connection for as long as it is open.
fn size<A, B, C, D, F: Future>(_serve: fn(A, B, C, D) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn a_connection_that_idles_has_a_small_task() {
    let (outbound, inbound) = (size(crate::outbound::serve), size(crate::inbound::serve));
    println!("outbound {outbound}, inbound {inbound} bytes");
    assert!(outbound <= 1200 && inbound <= 1800, "outbound {outbound}, inbound {inbound} bytes");
}
