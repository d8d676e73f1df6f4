//! A node with a bridge, pods on it, and an agent's sockets: all real, named after the test, and
//! gone at its end.

use std::{
    collections::HashSet,
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU8, Ordering},
};

use sluice_kernel::{
    Datapath, Feature, LogLevel, Placed, PodCounters, PodExemptions, PodHooks, Settings,
    WorkerSockets,
};
use sluice_sys::Netns;

/// Third octet of each lab's addresses in this process.
static LABS: AtomicU8 = AtomicU8::new(1);

/// A node namespace with a bridge, and an instance of the datapath named after the test.
pub(crate) struct Lab {
    name: String,
    subnet: u8,
    node: Namespace,
    settings: Settings,
}

impl Lab {
    pub(crate) fn new(name: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests load BPF programs: run them as root"
        );
        let name = format!("k{}-{name}", process::id());
        let subnet = LABS.fetch_add(1, Ordering::Relaxed);
        let node = Namespace::new(&format!("{name}-node"));
        node.ip("link add br0 type bridge");
        node.ip(&format!("addr add 10.7.{subnet}.1/24 dev br0"));
        node.ip(&format!("addr add fd07:{subnet:x}::1/64 dev br0 nodad"));
        node.ip("link set br0 up");
        let settings = Settings {
            cgroup: cgroup2(),
            max_pods: 16,
            max_peers: 1024,
            log: LogLevel::Off,
            ..Settings::new(name.clone())
        };
        Self { name, subnet, node, settings }
    }

    /// Makes the datapath behave as on a kernel that lacks these features.
    pub(crate) fn without(mut self, features: &[Feature]) -> Self {
        self.settings.without = features.to_vec();
        self
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The directory of the instance's pins.
    pub(crate) fn instance_directory(&self) -> PathBuf {
        self.settings.bpffs.join("sluice").join(&self.settings.instance)
    }

    pub(crate) fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// Opens the datapath as the node's agent would.
    pub(crate) fn open(&self) -> Datapath {
        self.on_node(|| Datapath::open(&self.settings)).unwrap()
    }

    /// Runs in the node's namespace.
    pub(crate) fn on_node<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        self.node.netns.run(task).unwrap()
    }

    /// Makes the node's bridge pass frames unfiltered, as where nothing has loaded `br_netfilter`.
    pub(crate) fn unfilter_bridge(&self) {
        let parameter = "net/bridge/bridge-nf-call-iptables";
        if self.on_node(|| PathBuf::from("/proc/sys").join(parameter).exists()) {
            self.node.sysctl(parameter, "0");
        }
    }

    /// The name of the node's namespace.
    pub(crate) fn node_name(&self) -> &str {
        &self.node.name
    }

    /// Adds a pod whose addresses end in `host`.
    pub(crate) fn pod(&self, host: u8) -> Pod {
        let namespace = Namespace::new(&format!("{}-{host}", self.name));
        let veth = format!("v{host}");
        self.node.ip(&format!("link add {veth} type veth peer name eth0 netns {}", namespace.name));
        self.node.ip(&format!("link set {veth} master br0 up"));
        let (v4, v6) = (self.v4(host), self.v6(host));
        namespace.ip("link set lo up");
        namespace.ip(&format!("addr add {v4}/24 dev eth0"));
        namespace.ip(&format!("addr add {v6}/64 dev eth0 nodad"));
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("route add default via 10.7.{}.1", self.subnet));
        namespace.ip(&format!("route add default via fd07:{:x}::1", self.subnet));
        let ifindex = self.on_node(|| interface(&veth));
        let pod = Pod { namespace, v4: v4.into(), v6: v6.into(), ifindex, veth };
        // A new link takes time to come up, and nothing that a test sends may be lost to that.
        assert!(
            is_refused(|| pod.connect((self.v4(1), 9)))
                && is_refused(|| pod.connect((self.v6(1), 9)))
        );
        pod
    }

    pub(crate) fn v4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 7, self.subnet, host)
    }

    pub(crate) fn v6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd07, self.subnet.into(), 0, 0, 0, 0, 0, host.into())
    }

    /// Brings a host veth up or down, and so the pod's link.
    pub(crate) fn set_link(&self, pod: &Pod, state: &str) {
        self.node.ip(&format!("link set {} {state}", pod.veth));
    }

    /// Whether this kernel, or the lab's settings, lacks a feature: then the fallback is to be expected.
    pub(crate) fn lacks(&self, feature: Feature) -> bool {
        let report = Datapath::verify_only(&self.settings).unwrap();
        report.fallbacks.iter().any(|fallback| fallback.feature == feature)
    }

    /// Removes a program (`guard` or `probe`) from a pod's host veth behind the agent's back.
    pub(crate) fn lose(&self, pod: &Pod, which: &str) {
        if self.lacks(Feature::Tcx) {
            let side = if which == "guard" { "ingress" } else { "egress" };
            let arguments = ["-n", &self.node.name, "filter", "del", "dev", &pod.veth, side];
            let output = Command::new("tc").args(arguments).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        let instance = self.settings.bpffs.join("sluice").join(&self.settings.instance);
        let generation = fs::read_dir(instance).unwrap().next().unwrap().unwrap().path();
        let hooks = generation.join("pod").join(pod.cookie().to_string());
        fs::remove_file(hooks.join(format!("{which}-{}", pod.ifindex))).unwrap();
    }

    /// Returns what `tc` says about a host veth's ingress filters.
    pub(crate) fn filters(&self, pod: &Pod) -> String {
        let arguments = ["-n", &self.node.name, "filter", "show", "dev", &pod.veth, "ingress"];
        let output = Command::new("tc").args(arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let (bpffs, instance) = (&self.settings.bpffs, &self.settings.instance);
        match self.node.netns.run(|| Datapath::remove(bpffs, instance)) {
            Ok(Ok(_)) => {}
            // The test has failed already, and that failure is the one to report.
            _ if std::thread::panicking() => {}
            failed => panic!("cannot clean up: {failed:?}"),
        }
    }
}

/// A pod's namespace with its addresses and the host end of its veth.
pub(crate) struct Pod {
    pub(crate) namespace: Namespace,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
    pub(crate) ifindex: u32,
    veth: String,
}

impl Pod {
    pub(crate) fn netns(&self) -> &Netns {
        &self.namespace.netns
    }

    pub(crate) fn cookie(&self) -> u64 {
        self.netns().cookie()
    }

    /// Runs inside the pod.
    pub(crate) fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        self.netns().run(task).unwrap()
    }

    pub(crate) fn listen(&self, address: impl Into<SocketAddr>) -> TcpListener {
        let address = address.into();
        self.run(|| TcpListener::bind(address)).unwrap()
    }

    pub(crate) fn connect(&self, address: impl Into<SocketAddr>) -> std::io::Result<TcpStream> {
        let address = address.into();
        self.run(|| TcpStream::connect(address))
    }

    /// Makes and marks an agent's listeners for this pod, for this number of workers.
    pub(crate) fn agent(&self, datapath: &Datapath, workers: usize) -> AgentSockets {
        let listen = |address: IpAddr| {
            let listener = self.listen((address, 0));
            datapath.sockets().mark_listener(&listener).unwrap();
            listener
        };
        let worker = |_| WorkerListeners {
            out_v4: listen(Ipv4Addr::LOCALHOST.into()),
            out_v6: listen(Ipv6Addr::LOCALHOST.into()),
            in_v4: listen(Ipv4Addr::LOCALHOST.into()),
            in_v6: listen(Ipv6Addr::LOCALHOST.into()),
        };
        AgentSockets { workers: (0..workers).map(worker).collect() }
    }

    /// Enrols the pod with an agent's listeners.
    pub(crate) fn enroll(&self, lab: &Lab, datapath: &Datapath, agent: &AgentSockets) {
        self.enroll_exempt(lab, datapath, agent, &PodExemptions::default()).exempt.unwrap();
    }

    /// Enrols the pod with an agent's listeners and these exemptions.
    pub(crate) fn enroll_exempt(
        &self,
        lab: &Lab,
        datapath: &Datapath,
        agent: &AgentSockets,
        exemptions: &PodExemptions,
    ) -> Placed {
        let workers: Vec<WorkerSockets<'_>> =
            agent.workers.iter().map(WorkerListeners::sockets).collect();
        let hooks = PodHooks {
            cookie: self.cookie(),
            netns: self.netns().as_fd(),
            slot: None,
            addresses: &[self.v4, self.v6],
            guard_ifindexes: &[self.ifindex],
            workers: &workers,
            exemptions,
        };
        lab.on_node(|| datapath.enroll(&hooks)).unwrap()
    }

    /// Changes the enrolled pod's exemptions.
    pub(crate) fn exempt(&self, lab: &Lab, datapath: &Datapath, exemptions: &PodExemptions) {
        lab.on_node(|| datapath.exempt(self.cookie(), exemptions)).unwrap();
    }

    /// Makes the listeners of one worker for the pod, and enrols it.
    pub(crate) fn capture(&self, lab: &Lab, datapath: &Datapath) -> AgentSockets {
        let agent = self.agent(datapath, 1);
        self.enroll(lab, datapath, &agent);
        agent
    }

    /// Index of the pod's interface, inside the pod.
    pub(crate) fn interface(&self) -> u32 {
        self.run(|| interface("eth0"))
    }

    /// The hardware address of the pod's interface.
    pub(crate) fn hardware_address(&self) -> String {
        let arguments = ["-n", self.namespace.name(), "-o", "link", "show", "eth0"];
        let output = Command::new("ip").args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut fields = text.split_whitespace().skip_while(|field| *field != "link/ether");
        fields.nth(1).expect("an Ethernet interface").to_owned()
    }

    pub(crate) fn counters(&self, datapath: &Datapath) -> PodCounters {
        datapath.counters(self.cookie()).unwrap()
    }
}

/// What one agent listens on for one pod.
pub(crate) struct AgentSockets {
    pub(crate) workers: Vec<WorkerListeners>,
}

impl AgentSockets {
    /// The only worker's sockets.
    pub(crate) fn one(&self) -> &WorkerListeners {
        assert_eq!(self.workers.len(), 1);
        &self.workers[0]
    }
}

/// What one worker listens on for one pod.
pub(crate) struct WorkerListeners {
    pub(crate) out_v4: TcpListener,
    pub(crate) out_v6: TcpListener,
    pub(crate) in_v4: TcpListener,
    pub(crate) in_v6: TcpListener,
}

impl WorkerListeners {
    fn sockets(&self) -> WorkerSockets<'_> {
        WorkerSockets {
            out_port_v4: Some(port(&self.out_v4)),
            out_port_v6: Some(port(&self.out_v6)),
            in_v4: Some(self.in_v4.as_fd()),
            in_v6: Some(self.in_v6.as_fd()),
        }
    }
}

pub(crate) fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

/// A network namespace that is deleted when dropped.
pub(crate) struct Namespace {
    name: String,
    netns: Netns,
}

impl Namespace {
    fn new(name: &str) -> Self {
        ip(&format!("netns add {name}"));
        let netns = Netns::open(PathBuf::from("/run/netns").join(name)).unwrap();
        Self { name: name.to_owned(), netns }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` on the namespace.
    pub(crate) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    /// Sets a kernel parameter of the namespace.
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        let path = PathBuf::from("/proc/sys").join(name);
        self.netns.run(|| fs::write(path, value)).unwrap().unwrap();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.name));
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Index of an interface of the calling thread's namespace.
fn interface(name: &str) -> u32 {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    rustix::net::netdevice::name_to_index(socket, name).unwrap()
}

/// Returns where the machine has its cgroup v2 hierarchy.
pub(crate) fn cgroup2() -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount =
        fields.find(|fields| fields.get(2) == Some(&"cgroup2")).expect("no cgroup v2 is mounted");
    PathBuf::from(mount[1])
}

/// Makes these and no others the datapath's peers.
pub(crate) fn set_peers(datapath: &Datapath, peers: &[IpAddr]) {
    datapath.set_peers(&peers.iter().copied().collect::<HashSet<_>>()).unwrap();
}

/// Waits until `is_so` is true; what the kernel does asynchronously takes less than a second.
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) -> bool {
    (0..100).any(|_| {
        is_so() || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            false
        }
    })
}

/// Waits until connections are refused after a listener was closed. A child that another test forks
/// also holds the listener until it executes another program.
pub(crate) fn is_refused(connect: impl Fn() -> std::io::Result<TcpStream>) -> bool {
    eventually(|| connect().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused))
}
