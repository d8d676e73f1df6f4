//! Which connections are older than the mesh and end with enrolment.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use sluice_mesh::Workload;

use super::fake::Fake;
use crate::{
    PodEvent,
    lab::{Lab, NODE, Namespace, mesh, uid, workload},
};

/// A connection from a pod to a server on the node's bridge, or wherever its listener was bound.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new(pod: &Namespace, listener: &TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let client = pod.run(|| TcpStream::connect(address).unwrap());
        Self { client, server: listener.accept().unwrap().0 }
    }

    fn works(&mut self) -> bool {
        self.client.write_all(b"x").is_ok() && self.server.read_exact(&mut [0]).is_ok()
    }
}

/// A pod of another node, at the bridge's addresses.
fn remote(in_mesh: bool) -> Workload {
    let mut remote = workload("remote", 254, None);
    remote.addresses[1] = "fd66::fe".parse().unwrap();
    Workload { node: "node-b".into(), in_mesh, ..remote }
}

#[test]
fn connections_to_peers_end_when_a_pod_is_captured() {
    Lab::run("c-fresh", |lab| {
        let pod = lab.pod("web", 2);
        // An address of the node that is not in the mesh.
        lab.node_ip("address add 10.66.9.9/32 dev br0");
        pod.ip("route add 10.66.9.9/32 dev eth0");
        let [v4, v6, outside] = ["10.66.0.254:0", "[fd66::fe]:0", "10.66.9.9:0"]
            .map(|address| TcpListener::bind(address).unwrap());
        let own = pod.run(|| TcpListener::bind("10.66.0.2:0").unwrap());
        let mut ended = [Pair::new(&pod, &v4), Pair::new(&pod, &v6)];
        let mut spared = [Pair::new(&pod, &outside), Pair::new(&pod, &own)];
        let fake = Fake::default();
        let mut manager = fake.manager();
        let snapshot = mesh(vec![workload("web", 2, Some(pod.path())), remote(true)]);
        let events = manager.reconcile(&snapshot, NODE);
        assert_eq!(events, [PodEvent::Captured { pod: uid("web"), adopted: false, destroyed: 2 }]);
        assert_eq!(manager.status()[0].connections_destroyed, 2);
        assert!(ended.iter_mut().all(|pair| !pair.works()));
        assert!(spared.iter_mut().all(Pair::works));
    });
}

/// A connection that another process holds.
pub(super) struct Stranger(Child);

impl Stranger {
    pub(super) fn connect(pod: &Namespace, listener: &TcpListener) -> (Self, TcpStream) {
        let address = listener.local_addr().unwrap();
        let script = format!("exec 3<>/dev/tcp/{}/{}; cat <&3", address.ip(), address.port());
        let child = Command::new("nsenter")
            .arg(format!("--net={}", pod.path().display()))
            .args(["bash", "-c", &script])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        (Self(child), listener.accept().unwrap().0)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn connections_to_a_new_peer_end_but_not_the_agents_own() {
    Lab::run("c-joined", |lab| {
        let pod = lab.pod("web", 2);
        let web = workload("web", 2, Some(pod.path()));
        let fake = Fake::default();
        let mut manager = fake.manager();
        manager.reconcile(&mesh(vec![web.clone(), remote(false)]), NODE);
        let listener = TcpListener::bind("10.66.0.254:0").unwrap();
        let mut own = Pair::new(&pod, &listener);
        let (_stranger, mut server) = Stranger::connect(&pod, &listener);
        let events = manager.reconcile(&mesh(vec![web, remote(true)]), NODE);
        assert_eq!(events, [PodEvent::Cut { pod: uid("web"), connections: 1 }]);
        assert!(server.read_exact(&mut [0]).is_err());
        assert!(own.works());
    });
}

/// A connection from the node to a listener in a pod that nobody has accepted yet.
fn ring(pod: &Namespace) -> (TcpListener, TcpStream) {
    let listener = pod.run(|| TcpListener::bind("10.66.0.2:0").unwrap());
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener, client)
}

/// Whether a connection that waits in a listener can be used.
fn is_served((listener, client): (TcpListener, TcpStream)) -> bool {
    listener.set_nonblocking(true).unwrap();
    listener.accept().is_ok_and(|(server, _)| Pair { client, server }.works())
}

#[test]
fn connections_that_wait_for_the_agent_are_not_cut_with_the_older_ones() {
    Lab::run("c-waiting", |lab| {
        let pod = lab.pod("web", 2);
        let web = workload("web", 2, Some(pod.path()));
        let older = ring(&pod);
        let (fake, newer) = (Fake::default(), Arc::new(Mutex::new(None)));
        let (path, found) = (pod.path(), Arc::clone(&newer));
        fake.notes().once_captured = Some(Box::new(move || {
            let netns = sluice_sys::Netns::open(path).unwrap();
            let listener = netns.run(|| TcpListener::bind("10.66.0.2:0").unwrap()).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            *found.lock().unwrap() = Some((listener, client));
        }));
        let mut manager = fake.manager();
        let events = manager.reconcile(&mesh(vec![web.clone(), remote(true)]), NODE);
        assert_eq!(events, [PodEvent::Captured { pod: uid("web"), adopted: false, destroyed: 1 }]);
        assert!(!is_served(older), "it was there before the pod was captured");
        assert!(is_served(newer.lock().unwrap().take().unwrap()));

        // Of a pod that is served nobody can tell whose they are.
        manager.reconcile(&mesh(vec![web.clone(), remote(false)]), NODE);
        let waiting = ring(&pod);
        assert_eq!(manager.reconcile(&mesh(vec![web, remote(true)]), NODE), []);
        assert!(is_served(waiting));
    });
}

#[test]
fn a_pod_that_was_captured_all_along_keeps_its_connections() {
    Lab::run("c-adopted", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        let netns = sluice_sys::Netns::open(pod.path()).unwrap();
        fake.inherit(netns.cookie(), &["10.66.0.2"]);
        let listener = TcpListener::bind("10.66.0.254:0").unwrap();
        let mut pair = Pair::new(&pod, &listener);
        let snapshot = mesh(vec![workload("web", 2, Some(pod.path())), remote(true)]);
        let events = fake.manager().reconcile(&snapshot, NODE);
        assert_eq!(events, [PodEvent::Captured { pod: uid("web"), adopted: true, destroyed: 0 }]);
        assert!(pair.works());
    });
}
