//! Real namespaces for the tests of this crate: a node, its pods, and the mesh that declares them.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::PathBuf,
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use sluice_mesh::{Bypass, Labels, Snapshot, SnapshotBuilder, Workload, WorkloadUid};
use sluice_spiffe::{TrustDomain, WorkloadName};
use sluice_sys::Netns;

/// Name of the node that the tests are about.
pub(crate) const NODE: &str = "node-a";

/// A namespace that is deleted when dropped.
pub(crate) struct Namespace(String);

impl Namespace {
    /// Panics without root, because a test that is silently skipped looks like one that passed.
    fn new(name: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "run these tests as root");
        let name = format!("sp{}-{name}", process::id());
        ip(&format!("netns add {name}"));
        Self(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    pub(crate) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }

    pub(crate) fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        Netns::open(self.path()).unwrap().run(task).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test may have deleted the namespace already, and a failing test must not panic twice.
        drop(Command::new("ip").args(["netns", "del", &self.0]).output());
    }
}

/// A node with a bridge, at `10.66.0.254` and `fd66::fe`.
pub(crate) struct Lab {
    name: String,
    node: Namespace,
}

impl Lab {
    /// Runs a test in a node's namespace, as an agent runs in that of its node.
    pub(crate) fn run(name: &str, test: impl FnOnce(&Self) + Send) {
        let lab = Self { name: name.to_owned(), node: Namespace::new(&format!("{name}-node")) };
        lab.node.ip("link set lo up");
        lab.node.ip("link add br0 type bridge");
        lab.node.ip("link set br0 up");
        for address in ["10.66.0.254/24", "fd66::fe/64 nodad"] {
            lab.node.ip(&format!("address add {address} dev br0"));
        }
        lab.node.run(|| test(&lab));
    }

    /// Makes a namespace that has no link to another one and nothing up.
    pub(crate) fn bare(&self, name: &str) -> Namespace {
        Namespace::new(&format!("{}-{name}", self.name))
    }

    /// Makes a pod at `10.66.0.<last>` and `fd66::<last>`, on the bridge.
    pub(crate) fn pod(&self, name: &str, last: u8) -> Namespace {
        let pod = self.bare(name);
        pod.ip("link set lo up");
        self.wire(&pod, "eth0", name);
        for address in [format!("10.66.0.{last}/24"), format!("fd66::{last}/64 nodad")] {
            pod.ip(&format!("address add {address} dev eth0"));
        }
        pod
    }

    /// Makes a veth pair between a pod and the bridge.
    pub(crate) fn wire(&self, pod: &Namespace, link: &str, peer: &str) {
        pod.ip(&format!("link add {link} type veth peer name {peer} netns {}", self.node.0));
        self.node.ip(&format!("link set {peer} master br0 up"));
        pod.ip(&format!("link set {link} up"));
    }

    /// Runs `ip` on the node.
    pub(crate) fn node_ip(&self, arguments: &str) {
        self.node.ip(arguments);
    }

    /// Waits until the node's end of a veth pair is gone, which happens once nothing keeps the
    /// pod's namespace alive. Call it on a thread in the node's namespace.
    pub(crate) fn await_end_of(peer: &str) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let interfaces = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        while interfaces().contains(&format!("{peer}:")) {
            assert!(Instant::now() < deadline, "something keeps the namespace of {peer} alive");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

/// Declares a mesh pod like those that [`Lab::pod`] makes.
pub(crate) fn workload(name: &str, last: u8, netns: Option<PathBuf>) -> Workload {
    let account = WorkloadName { namespace: "shop".into(), service_account: name.into() };
    Workload {
        uid: uid(name),
        static_uid: None,
        name: name.into(),
        identity: account.identity(&domain()).unwrap(),
        account,
        labels: Labels::default(),
        addresses: vec![IpAddr::from([10, 66, 0, last]), format!("fd66::{last}").parse().unwrap()],
        node: NODE.into(),
        in_mesh: true,
        netns,
        ready: true,
        zone: None,
        bypass: Bypass::default(),
        probe_ports: BTreeSet::new(),
    }
}

pub(crate) fn uid(name: &str) -> WorkloadUid {
    WorkloadUid(format!("shop/{name}").into())
}

pub(crate) fn mesh(workloads: Vec<Workload>) -> Snapshot {
    SnapshotBuilder { workloads, ..SnapshotBuilder::default() }.build(domain()).unwrap()
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}
