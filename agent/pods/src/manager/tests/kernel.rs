//! Enrolment against the kernel itself: what is captured arrives at the agent, what is withdrawn
//! does not, and an agent that dies and comes back loses no pod.

use std::{
    collections::HashMap,
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use sluice_kernel::{Datapath, Settings};
use sluice_mesh::{Workload, WorkloadUid};
use sluice_sys::socket;

use crate::{
    LocalPod, PodEvent, PodManager, PodState, WorkerListeners, Workers,
    lab::{Lab, NODE, Namespace, mesh, uid, workload},
};

/// An agent on the lab's node: an instance of the datapath, and workers that answer for it.
struct Agent {
    datapath: Arc<Datapath>,
    manager: PodManager<Arc<Datapath>>,
}

impl Agent {
    fn start(settings: &Settings) -> Self {
        let datapath = Arc::new(Datapath::open(settings).unwrap());
        let workers =
            Arc::new(Answering { datapath: Arc::clone(&datapath), pods: Mutex::default() });
        Self { manager: PodManager::new(Arc::clone(&datapath), workers, 2), datapath }
    }

    fn reconcile(&mut self, workloads: &[Workload]) -> Vec<PodEvent> {
        self.manager.reconcile(&mesh(workloads.to_vec()), NODE)
    }
}

/// Settings of an instance of its own, which is removed from the kernel when dropped.
struct Instance(Settings);

impl Instance {
    fn new(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let cgroup = mounts
            .lines()
            .filter_map(|line| line.split_once(" cgroup2 ")?.0.split_once(' '))
            .map(|(_, path)| PathBuf::from(path))
            .next()
            .expect("mount a cgroup v2 hierarchy to run these tests");
        let instance = format!("p{}-{name}", process::id());
        Self(Settings { cgroup, max_pods: 4, max_peers: 64, ..Settings::new(instance) })
    }

    /// The pins of enrolled pods.
    fn pod_pins(&self) -> Vec<PathBuf> {
        fn files(directory: &Path, found: &mut Vec<PathBuf>) {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { files(&path, found) } else { found.push(path) }
            }
        }
        let mut found = Vec::new();
        files(&self.0.bpffs.join("sluice").join(&self.0.instance), &mut found);
        found.retain(|path| path.components().any(|part| part.as_os_str() == "pod"));
        found
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let removed = Datapath::remove(&self.0.bpffs, &self.0.instance);
        assert!(removed.is_ok() || thread::panicking(), "cannot clean up: {removed:?}");
    }
}

/// Workers that answer a captured connection with its original destination, or with "in" if it is
/// inbound.
struct Answering {
    datapath: Arc<Datapath>,
    pods: Mutex<HashMap<WorkloadUid, Vec<Acceptor>>>,
}

/// A thread that accepts until it is dropped, and then also accepts what is still waiting.
struct Acceptor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    fn start(
        listener: TcpListener,
        answer: impl Fn(&TcpStream) -> String + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let accepting = move || {
            loop {
                let last = stopping.load(Ordering::SeqCst);
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        drop(stream.write_all(answer(&stream).as_bytes()));
                        socket::set_end_on_close(&stream).unwrap();
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock && last => return,
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        };
        Self { stop, thread: Some(thread::spawn(accepting)) }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Workers for Answering {
    fn add(&self, pod: Arc<LocalPod>, listeners: Vec<WorkerListeners>) {
        let outbound = |listener| {
            let sockets = self.datapath.sockets();
            Acceptor::start(listener, move |stream| {
                sockets.original_destination(stream).unwrap().unwrap().to_string()
            })
        };
        let inbound = |listener| Acceptor::start(listener, |_| "in".to_owned());
        let acceptors = listeners.into_iter().flat_map(|worker| {
            let outbound: Vec<_> = worker.outbound.into_iter().map(outbound).collect();
            outbound.into_iter().chain(worker.inbound.into_iter().map(inbound)).collect::<Vec<_>>()
        });
        let old = self.pods.lock().unwrap().insert(pod.uid.clone(), acceptors.collect());
        drop(old);
    }

    fn remove(&self, pod: &Arc<LocalPod>) {
        let old = self.pods.lock().unwrap().remove(&pod.uid);
        drop(old);
    }
}

/// Connects to `address` from the calling thread's namespace and returns the answer.
fn ask(address: SocketAddr) -> Result<String, ErrorKind> {
    let mut stream = TcpStream::connect(address).map_err(|error| error.kind())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| error.kind())?;
    Ok(answer)
}

/// Starts servers on the node's bridge, one per family, that answer "plain".
fn plain_servers() -> ([SocketAddr; 2], Vec<Acceptor>) {
    let listeners = ["10.66.0.254:0", "[fd66::fe]:0"].map(|text| TcpListener::bind(text).unwrap());
    let addresses = [0, 1].map(|index| listeners[index].local_addr().unwrap());
    let answering = |listener: TcpListener| {
        listener.set_nonblocking(true).unwrap();
        Acceptor::start(listener, |_| "plain".to_owned())
    };
    (addresses, listeners.into_iter().map(answering).collect())
}

/// Declares a mesh pod on another node, which has the bridge's addresses.
fn remote() -> Workload {
    let mut remote = workload("remote", 254, None);
    remote.addresses[1] = "fd66::fe".parse().unwrap();
    Workload { node: "node-b".into(), ..remote }
}

fn declared(name: &str, last: u8, pod: &Namespace) -> Workload {
    workload(name, last, Some(pod.path()))
}

fn captured(name: &str, adopted: bool) -> PodEvent {
    PodEvent::Captured { pod: uid(name), adopted, destroyed: 0 }
}

fn asked_from(pod: &Namespace, address: SocketAddr) -> Result<String, ErrorKind> {
    pod.run(|| ask(address))
}

#[test]
fn a_captured_pod_speaks_and_listens_through_the_agent_until_it_leaves() {
    Lab::run("k-life", |lab| {
        let (instance, pod) = (Instance::new("life"), lab.pod("web", 2));
        let (servers, _serving) = plain_servers();
        let mut agent = Agent::start(&instance.0);
        let web = declared("web", 2, &pod);
        assert_eq!(agent.reconcile(&[web, remote()]), [captured("web", false)]);
        assert_eq!(agent.manager.audit(), [], "the kernel says that it is captured");
        for server in servers {
            assert_eq!(asked_from(&pod, server), Ok(server.to_string()));
        }
        for address in ["10.66.0.2:8080", "[fd66::2]:8080"] {
            assert_eq!(ask(address.parse().unwrap()), Ok("in".to_owned()));
        }
        let counters = agent.manager.status()[0].counters.unwrap();
        assert_eq!((counters.captured, counters.inbound), (2, 2));

        assert!(matches!(&agent.reconcile(&[remote()])[..], [PodEvent::Withdrawn { .. }]));
        for server in servers {
            assert_eq!(asked_from(&pod, server), Ok("plain".to_owned()));
        }
        assert_eq!(ask("10.66.0.2:8080".parse().unwrap()), Err(ErrorKind::ConnectionRefused));
        assert!(instance.pod_pins().is_empty());
    });
}

#[test]
fn connections_never_fail_while_a_pod_is_enrolled_anew() {
    Lab::run("k-renew", |lab| {
        let (instance, pod) = (Instance::new("renew"), lab.pod("web", 2));
        let ([server, _], _serving) = plain_servers();
        let mut agent = Agent::start(&instance.0);
        let mut web = declared("web", 2, &pod);
        agent.reconcile(&[web.clone(), remote()]);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                pod.run(|| {
                    let mut answers = 0;
                    while !done.load(Ordering::SeqCst) {
                        assert_eq!(ask(server), Ok(server.to_string()));
                        answers += 1;
                    }
                    answers
                })
            });
            for turn in 0..40 {
                web.name = format!("web-{turn}");
                let events = agent.reconcile(&[web.clone(), remote()]);
                assert_eq!(events, [PodEvent::Renewed { pod: uid("web") }]);
            }
            done.store(true, Ordering::SeqCst);
            assert!(asking.join().unwrap() > 40);
        });
    });
}

#[test]
fn a_dead_agents_pods_are_refused_and_the_next_one_adopts_them() {
    Lab::run("k-adopt", |lab| {
        let (instance, pod) = (Instance::new("adopt"), lab.pod("web", 2));
        let (servers, _serving) = plain_servers();
        let mesh = [declared("web", 2, &pod), remote()];
        let mut agent = Agent::start(&instance.0);
        agent.reconcile(&mesh);
        drop(agent);
        for server in servers {
            assert_eq!(asked_from(&pod, server), Err(ErrorKind::ConnectionRefused));
        }
        let mut agent = Agent::start(&instance.0);
        assert_eq!(agent.manager.audit(), [], "without a snapshot nothing changes");
        assert_eq!(asked_from(&pod, servers[0]), Err(ErrorKind::ConnectionRefused));
        assert_eq!(agent.reconcile(&mesh), [captured("web", true)]);
        for server in servers {
            assert_eq!(asked_from(&pod, server), Ok(server.to_string()));
        }
    });
}

#[test]
fn a_pod_that_left_while_no_agent_ran_is_set_free() {
    Lab::run("k-left", |lab| {
        let (instance, pod) = (Instance::new("left"), lab.pod("web", 2));
        let ([server, _], _serving) = plain_servers();
        Agent::start(&instance.0).reconcile(&[declared("web", 2, &pod), remote()]);
        let events = Agent::start(&instance.0).reconcile(&[remote()]);
        assert!(matches!(&events[..], [PodEvent::Withdrawn { pod: None, .. }]));
        assert_eq!(asked_from(&pod, server), Ok("plain".to_owned()));
    });
}

#[test]
fn a_full_node_refuses_one_pod_and_serves_the_others() {
    Lab::run("k-full", |lab| {
        let mut instance = Instance::new("full");
        instance.0.max_pods = 1;
        let (first, second) = (lab.pod("first", 2), lab.pod("second", 3));
        let ([server, _], _serving) = plain_servers();
        let mut agent = Agent::start(&instance.0);
        let mesh = [declared("first", 2, &first), declared("second", 3, &second), remote()];
        let events = agent.reconcile(&mesh);
        let refused = |event: &PodEvent| {
            matches!(event, PodEvent::Refused { pod, reason }
                if *pod == uid("second") && reason.contains("captures 1 at most"))
        };
        assert!(events.contains(&captured("first", false)) && events.iter().any(refused));
        assert_eq!(asked_from(&first, server), Ok(server.to_string()));
        let state = &agent.manager.status()[1].state;
        assert!(matches!(state, PodState::Refused { .. }));
        let [_, second_declared, remote] = mesh;
        thread::sleep(Duration::from_millis(1100));
        let events = agent.reconcile(&[second_declared, remote]);
        assert!(events.contains(&captured("second", false)), "{events:?}");
        assert_eq!(asked_from(&second, server), Ok(server.to_string()));
    });
}

#[test]
fn a_link_that_somebody_detached_is_put_back() {
    Lab::run("k-pins", |lab| {
        let (instance, pod) = (Instance::new("pins"), lab.pod("web", 2));
        let mut agent = Agent::start(&instance.0);
        agent.reconcile(&[declared("web", 2, &pod), remote()]);
        let pins = instance.pod_pins();
        assert!(pins.len() >= 2, "{pins:?}");
        for pin in pins {
            fs::remove_file(&pin).unwrap();
            // The kernel releases a link some time after its last name is gone.
            let found = (0..500).find_map(|_| {
                thread::sleep(Duration::from_millis(10));
                agent.manager.audit().pop()
            });
            assert!(matches!(found, Some(PodEvent::Repaired { .. })), "{pin:?}: {found:?}");
            assert_eq!(agent.manager.audit(), []);
        }
        assert_eq!(ask("10.66.0.2:8080".parse().unwrap()), Ok("in".to_owned()));
    });
}

#[test]
fn a_deleted_namespace_dies_and_its_successor_is_captured() {
    Lab::run("k-again", |lab| {
        let (instance, pod) = (Instance::new("again"), lab.pod("web", 2));
        let ([server, _], _serving) = plain_servers();
        let mut agent = Agent::start(&instance.0);
        agent.reconcile(&[declared("web", 2, &pod), remote()]);
        drop(pod);
        assert!(matches!(&agent.manager.audit()[..], [PodEvent::Withdrawn { .. }, _]));
        Lab::await_end_of("web");
        let pod = lab.pod("web", 2);
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(agent.manager.audit(), [captured("web", false)]);
        assert_eq!(asked_from(&pod, server), Ok(server.to_string()));
        assert_eq!(ask("10.66.0.2:8080".parse().unwrap()), Ok("in".to_owned()));
        assert_eq!(agent.datapath.enrolled().unwrap().len(), 1);
    });
}
