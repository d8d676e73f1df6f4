//! The cost of one agent that follows a large cluster: memory, time to the first state, CPU while things change.
//!
//! The pods are on nodes that nobody runs: what is measured is how the agent follows them.

mod fleet;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::mount::{MountFlags, mount};
use sluice_tests::{
    Cluster, Netns, Process,
    agent::binary,
    cleanup::{Guard, Undo},
    full_size, require_root,
};

use self::fleet::Fleet;

/// The most memory beyond that of an agent of an empty cluster. The goal is 30 MB; the rest is what an allocator keeps
/// back.
const MOST_MEMORY: u64 = 36 << 20;
/// The most CPU that an agent may use, as part of a core; this is the goal itself.
const MOST_CPU: f64 = 0.05;
/// How long the first state may take. The goal is 5 s; a machine that runs other things at the same time gets three
/// times that.
const FIRST_STATE: Duration = Duration::from_secs(15);
const CHANGES_PER_SECOND: u32 = 20;
/// How long an agent takes to settle: it writes down what it remembers 10 s after the first state.
const SETTLE: Duration = Duration::from_secs(13);

/// An agent without pods, in this machine's own network namespace.
struct Follower {
    process: Process,
    metrics: SocketAddr,
    _unload: Guard,
}

impl Follower {
    /// Starts the agent in a directory of its own.
    fn start(cluster: &Cluster, directory: &Path, name: &str) -> Result<Self> {
        let metrics = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let at = |part: &str| directory.join(name).join(part);
        fs::create_dir_all(at("state"))?;
        let instance = format!("scale-{name}-{}", std::process::id());
        let bpffs = directory.join("bpf");
        let config = format!(
            "node: scale-observer\ninstance: {instance}\nstateDir: {}\nsocket: {}\nbpffs: {}\n\
             metrics: '{metrics}'\nca: {{ mode: embedded, dir: {} }}\nkubernetes: {{ kubeconfig: {} }}\n",
            at("state").display(),
            at("agent.sock").display(),
            bpffs.display(),
            at("ca").display(),
            cluster.kubeconfig().display(),
        );
        fs::write(at("config.yaml"), config)?;
        let arguments = ["datapath", "unload", "--instance", &instance, "--bpffs"];
        let mut undo = vec![binary()?.display().to_string()];
        undo.extend(arguments.map(str::to_owned));
        undo.push(bpffs.display().to_string());
        let unload = Guard::new(Undo::Run(undo));
        let mut command = Command::new(binary()?);
        command.args(["agent", "--config"]).arg(at("config.yaml"));
        let here = Netns::open(Path::new("/proc/self/ns/net"))?;
        let process = Process::start(directory, &here, name, command)?;
        Ok(Self { process, metrics, _unload: unload })
    }

    /// Returns the value of one of the agent's metrics; `name` includes all of its labels, if it has any.
    fn figure(&self, name: &str) -> Result<u64> {
        let mut stream = TcpStream::connect(self.metrics)?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| format!("no {name}"))?.parse()?)
    }

    /// Waits until the agent knows `addresses` at least. Returns how long that took.
    fn wait_for(&self, addresses: usize, patience: Duration) -> Result<Duration> {
        let (start, least) = (Instant::now(), u64::try_from(addresses)?);
        loop {
            let version = self.figure("sluice_mesh_state_version").unwrap_or_default();
            let known = self.figure("sluice_protected_addresses{kind=\"known\"}");
            if version > 0 && known.as_ref().is_ok_and(|known| *known >= least) {
                return Ok(start.elapsed());
            }
            ensure!(
                start.elapsed() < patience,
                "{known:?} of {least} addresses after {patience:?}: {}",
                self.process.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A directory with a BPF file system, removed when dropped.
struct Place {
    path: PathBuf,
    _guards: [Guard; 2],
}

impl Place {
    fn create() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("sluice-scale-{}", std::process::id()));
        let directory = Guard::new(Undo::Directory(path.clone()));
        let pins = path.join("bpf");
        fs::create_dir_all(&pins)?;
        let mounted = Guard::new(Undo::Mount(pins.clone()));
        mount("bpf", &pins, "bpf", MountFlags::empty(), None).context("mount a BPF file system")?;
        Ok(Self { path, _guards: [mounted, directory] })
    }
}

fn megabytes(bytes: u64) -> u64 {
    bytes >> 20
}

#[test]
fn an_agent_follows_a_large_cluster_at_little_cost() -> Result<()> {
    require_root();
    let cluster = Cluster::open()?;
    let place = Place::create()?;
    let pods = if full_size() { 10_000 } else { 500 };
    let fleet = Fleet::found(&cluster, pods)?;
    let empty = {
        let agent = Follower::start(&cluster, &place.path, "empty")?;
        agent.wait_for(0, FIRST_STATE)?;
        thread::sleep(SETTLE);
        agent.process.own_bytes()?
    };
    let start = Instant::now();
    fleet.populate()?;
    println!(
        "{pods} pods, {0} services and {0} policies made in {1:?}",
        fleet.services(),
        start.elapsed()
    );

    let agent = Follower::start(&cluster, &place.path, "full")?;
    let first = agent.wait_for(pods, FIRST_STATE)?;
    let at_once = agent.process.own_bytes()?;
    thread::sleep(SETTLE);
    let settled = agent.process.own_bytes()?;
    println!(
        "first state after {first:?}; memory {} MB empty, {} MB with the first state, {} MB settled",
        megabytes(empty),
        megabytes(at_once),
        megabytes(settled)
    );

    let seconds = if full_size() { 60 } else { 15 };
    let mut line = fleet.line()?;
    let (start, before) = (Instant::now(), agent.process.cpu_time()?);
    let version = agent.figure("sluice_mesh_state_version")?;
    for turn in 0..CHANGES_PER_SECOND * seconds {
        let due = Duration::from_secs(1) / CHANGES_PER_SECOND * turn;
        thread::sleep(due.saturating_sub(start.elapsed()));
        fleet.change(&mut line, usize::try_from(turn)?)?;
    }
    let used = agent.process.cpu_time()?.saturating_sub(before).as_secs_f64();
    let part = used / start.elapsed().as_secs_f64();
    let states = agent.figure("sluice_mesh_state_version")? - version;
    let changed = agent.process.own_bytes()?;
    println!(
        "{CHANGES_PER_SECOND} changes a second for {:?}: {:.2} % of a core, {states} states, memory {} MB, {} MB with \
         what is resident of the program",
        start.elapsed(),
        part * 100.0,
        megabytes(changed),
        megabytes(agent.process.resident_bytes()?)
    );
    ensure!(states > u64::from(seconds), "only {states} states in {seconds} s");
    for (when, bytes) in [("settled", settled), ("after the changes", changed)] {
        let more = bytes.saturating_sub(empty);
        ensure!(more <= MOST_MEMORY, "{when} {} MB more than empty", megabytes(more));
    }
    ensure!(part <= MOST_CPU, "{:.1} % of a core", part * 100.0);
    Ok(())
}
