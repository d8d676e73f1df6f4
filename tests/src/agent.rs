//! The real agents on the nodes of a [`World`]: configured, started, watched, killed, restarted.

mod view;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountFlags, mount};
use serde_json::Value;

use crate::{
    MeshFile, NodeName, Pod, Process, World,
    cleanup::{Guard, Undo},
    mesh::replace,
};

/// How long an agent may take to start and capture its pods.
const START: Duration = Duration::from_secs(20);
/// How long a change on disk may take until it is in force.
const CHANGE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// The trust domain of the lab.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// One agent process on one node.
#[derive(Debug)]
pub struct Agent {
    node: NodeName,
    instance: String,
    config: PathBuf,
    socket: PathBuf,
    process: Option<Process>,
    /// Removes whatever is still pinned, after the process has ended.
    _unload: Guard,
}

/// A world with an agent on each node, one mesh file and one directory of policies.
#[derive(Debug)]
pub struct Lab {
    mesh: MeshFile,
    agents: BTreeMap<NodeName, Agent>,
    _pins: Guard,
    /// The nodes and pods.
    pub world: World,
}

// === impl Agent ===

impl Agent {
    fn new(world: &World, node: NodeName, mesh: &Path, settings: Option<&str>) -> Result<Self> {
        let directory = world.directory().join(node.as_str());
        let (state, socket) = (directory.join("state"), directory.join("agent.sock"));
        fs::create_dir_all(&state)?;
        let instance = format!("{}-{}", world.id(), node.as_str());
        let bpffs = pins(world);
        let config = directory.join("config.yaml");
        let ca = world.directory().join("ca");
        let embedded = format!("ca: {{ mode: embedded, dir: {} }}", ca.display());
        let text = format!(
            "node: {node}\n\
             trustDomain: {TRUST_DOMAIN}\n\
             instance: {instance}\n\
             stateDir: {state}\n\
             socket: {socket}\n\
             bpffs: {bpffs}\n\
             workers: 2\n\
             logLevel: info\n\
             {settings}\n\
             mesh: {mesh}\n\
             policies: {policies}\n",
            node = node.as_str(),
            state = state.display(),
            socket = socket.display(),
            bpffs = bpffs.display(),
            settings = settings.map_or(embedded, str::to_owned),
            mesh = mesh.display(),
            policies = policies_path(world).display(),
        );
        replace(&config, &text)?;
        let unload = Guard::new(Undo::Run(vec![
            binary()?.to_string_lossy().into_owned(),
            "datapath".to_owned(),
            "unload".to_owned(),
            "--instance".to_owned(),
            instance.clone(),
            "--bpffs".to_owned(),
            bpffs.to_string_lossy().into_owned(),
        ]));
        Ok(Self { node, instance, config, socket, process: None, _unload: unload })
    }

    /// Returns the agent's instance name, by which its pin directory is named.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Starts the process; does not wait until it is ready.
    pub fn start(&mut self, world: &World) -> Result<()> {
        ensure!(self.process.is_none(), "the agent on {:?} already runs", self.node);
        let mut command = Command::new(binary()?);
        command.arg("agent").arg("--config").arg(&self.config);
        let name = format!("agent-{}", self.node.as_str());
        self.process =
            Some(Process::start(world.directory(), world.node(self.node), &name, command)?);
        Ok(())
    }

    /// Returns the running process.
    pub fn process(&mut self) -> Result<&mut Process> {
        let node = self.node;
        self.process.as_mut().with_context(|| format!("the agent on {node:?} is not running"))
    }

    /// Kills the agent (SIGKILL), as a crash would.
    pub fn kill9(&mut self) -> Result<()> {
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// Asks the agent to end (SIGTERM), and waits for its end.
    pub fn terminate(&mut self) -> Result<()> {
        self.process()?.terminate(Duration::from_secs(15))?;
        self.process = None;
        Ok(())
    }

    /// Waits until exactly the pods of `expected` are captured.
    pub fn wait_until_captured(&mut self, expected: &[String], patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut last = String::from("no status yet");
        while Instant::now() < deadline {
            match self.status() {
                Ok(status) => {
                    let captured = captured_pods(&status);
                    if same_names(&captured, expected) {
                        return Ok(());
                    }
                    last = format!("captured {captured:?}, expected {expected:?}; {status}");
                }
                Err(error) => last = format!("{error:#}"),
            }
            let process = self.process()?;
            if !process.is_running()? {
                bail!("the agent ended; its log:\n{}", process.log());
            }
            thread::sleep(POLL);
        }
        bail!("not captured within {patience:?}: {last}; log:\n{}", self.process()?.log())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // The process has to end before `_unload` runs, which must find none at work.
        self.process = None;
    }
}

// === impl Lab ===

impl Lab {
    /// Starts both agents, with `enrolled` pods in the mesh, and waits until they are captured.
    pub fn start(world: World, enrolled: &[&str]) -> Result<Self> {
        let mut mesh = MeshFile::of(&world);
        for pod in enrolled {
            mesh.enrol(pod, true)?;
        }
        Self::start_with(world, mesh, &[])
    }

    /// Starts both agents with this mesh and these policies (file name, YAML).
    pub fn start_with(world: World, mesh: MeshFile, policies: &[(&str, &str)]) -> Result<Self> {
        Self::start_set(world, mesh, policies, None)
    }

    /// Starts both agents as [`Self::start_with`] does, with these lines of configuration instead of an embedded CA.
    pub fn start_set(
        world: World,
        mesh: MeshFile,
        policies: &[(&str, &str)],
        settings: Option<&str>,
    ) -> Result<Self> {
        write_policies(&world, policies)?;
        mesh.write(&mesh_path(&world))?;
        let views = NodeName::BOTH.map(|node| (node, mesh_path(&world)));
        Self::launch(world, mesh, views, settings)
    }

    /// Starts both agents as [`Self::start_with`] does, each with a mesh file of its own; see [`view_path`].
    pub fn start_apart(world: World, mesh: MeshFile, policies: &[(&str, &str)]) -> Result<Self> {
        write_policies(&world, policies)?;
        let views = NodeName::BOTH.map(|node| (node, view_path(&world, node)));
        for (_, view) in &views {
            fs::create_dir_all(view.parent().context("a file in no directory")?)?;
            mesh.write(view)?;
        }
        Self::launch(world, mesh, views, None)
    }

    fn launch(
        world: World,
        mesh: MeshFile,
        views: [(NodeName, PathBuf); 2],
        settings: Option<&str>,
    ) -> Result<Self> {
        // The world has a BPF file system of its own: once it is unmounted, nothing of this world can be pinned.
        let pins = pins(&world);
        let guard = Guard::new(Undo::Mount(pins.clone()));
        fs::create_dir_all(&pins)?;
        mount("bpf", &pins, "bpf", MountFlags::empty(), None).context("mount a BPF file system")?;
        let mut agents = BTreeMap::new();
        for (node, view) in views {
            agents.insert(node, Agent::new(&world, node, &view, settings)?);
        }
        let mut lab = Self { mesh, agents, _pins: guard, world };
        for node in NodeName::BOTH {
            lab.start_agent(node)?;
        }
        lab.wait_until_settled(START)?;
        Ok(lab)
    }

    /// Returns the agent on `node`.
    pub fn agent(&mut self, node: NodeName) -> Result<&mut Agent> {
        self.agents.get_mut(&node).context("no agent on this node")
    }

    /// Returns the names of the pods that the agent on `node` has captured.
    pub fn captured_on(&self, node: NodeName) -> Result<Vec<String>> {
        let agent = self.agents.get(&node).context("no agent on this node")?;
        Ok(captured_pods(&agent.status()?))
    }

    /// Starts the agent on `node` again; does not wait.
    pub fn start_agent(&mut self, node: NodeName) -> Result<()> {
        let world = &self.world;
        self.agents.get_mut(&node).context("no agent on this node")?.start(world)
    }

    /// Returns a pod by name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.world.pod(name)
    }

    /// Returns the mesh as last written.
    pub fn mesh(&self) -> &MeshFile {
        &self.mesh
    }

    /// Changes the mesh file and waits until each agent has read it and has captured its own pods accordingly.
    pub fn edit_mesh(&mut self, change: impl FnOnce(&mut MeshFile) -> Result<()>) -> Result<()> {
        let before = self.versions()?;
        let text = self.mesh.to_yaml()?;
        self.write_mesh(change)?;
        let deadline = Instant::now() + CHANGE;
        while text != self.mesh.to_yaml()? {
            let now = self.versions()?;
            if before.iter().zip(&now).all(|(before, now)| now > before) {
                break;
            }
            ensure!(Instant::now() < deadline, "not taken over within {CHANGE:?}: state {now:?}");
            thread::sleep(POLL);
        }
        self.wait_until_settled(CHANGE)
    }

    /// Returns the version of the mesh that each running agent has.
    fn versions(&self) -> Result<Vec<u64>> {
        let running = self.agents.values().filter(|agent| agent.process.is_some());
        let version = |agent: &Agent| {
            let status = agent.status()?;
            let source = status.get("source").and_then(|source| source.get("version"));
            source.and_then(Value::as_u64).context("the status has no source.version")
        };
        running.map(version).collect()
    }

    /// Changes the mesh file and does not wait.
    pub fn write_mesh(&mut self, change: impl FnOnce(&mut MeshFile) -> Result<()>) -> Result<()> {
        change(&mut self.mesh)?;
        self.mesh.write(&mesh_path(&self.world))
    }

    /// Writes a policy file, which is in force some moments later.
    pub fn write_policy(&self, name: &str, text: &str) -> Result<()> {
        replace(&policies_path(&self.world).join(name), text)
    }

    /// Removes a policy file.
    pub fn remove_policy(&self, name: &str) -> Result<()> {
        Ok(fs::remove_file(policies_path(&self.world).join(name))?)
    }

    /// Waits until every running agent has captured exactly its enrolled pods.
    pub fn wait_until_settled(&mut self, patience: Duration) -> Result<()> {
        for (node, agent) in &mut self.agents {
            if agent.process.is_some() {
                agent.wait_until_captured(&self.mesh.enrolled_on(node.as_str()), patience)?;
            }
        }
        Ok(())
    }

    /// Returns what the agents have logged, for a failure's message.
    pub fn logs(&mut self) -> String {
        let logs =
            self.agents.values_mut().filter_map(|agent| agent.process().ok().map(|p| p.log()));
        logs.collect::<Vec<_>>().join("\n---\n")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            let logs = self.logs();
            crate::cleanup::report(&format!("logs of the agents:\n{logs}"));
        }
        // Agents before pins, pins before the world: the order in which they depend on each other.
        self.agents.clear();
    }
}

/// Returns the names of the pods that `status` shows as captured.
fn captured_pods(status: &Value) -> Vec<String> {
    let pods = status.get("pods").and_then(Value::as_array);
    let captured = |pod: &&Value| {
        pod.get("state").and_then(Value::as_str).is_some_and(|state| state == "captured")
    };
    let name = |pod: &Value| pod.get("name").and_then(Value::as_str).map(str::to_owned);
    pods.into_iter().flatten().filter(captured).filter_map(name).collect()
}

fn same_names(left: &[String], right: &[String]) -> bool {
    let (mut left, mut right) = (left.to_vec(), right.to_vec());
    left.sort();
    right.sort();
    left == right
}

/// Returns the path of the BPF file system of the world's agents.
pub fn pins(world: &World) -> PathBuf {
    world.directory().join("bpf")
}

/// Returns the path of the mesh file. It is apart from the logs: nothing else is written beside it.
pub fn mesh_path(world: &World) -> PathBuf {
    world.directory().join("mesh").join("mesh.yaml")
}

/// Returns the path of one agent's mesh file, if each has its own ([`Lab::start_apart`]).
pub fn view_path(world: &World, node: NodeName) -> PathBuf {
    world.directory().join(format!("view-{}", node.as_str())).join("mesh.yaml")
}

fn write_policies(world: &World, policies: &[(&str, &str)]) -> Result<()> {
    fs::create_dir_all(policies_path(world))?;
    policies.iter().try_for_each(|(name, text)| replace(&policies_path(world).join(name), text))
}

fn policies_path(world: &World) -> PathBuf {
    world.directory().join("mesh").join("policies")
}

/// Returns the path of the agent's binary: `SLUICE_BIN`, or `sluice` beside this program (tests are one level deeper).
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SLUICE_BIN") {
        return Ok(path.into());
    }
    sibling("sluice").context("build it with `cargo xtask build`, or set SLUICE_BIN")
}

/// Returns the path of a program of this workspace, found beside the running one.
pub fn sibling(name: &str) -> Result<PathBuf> {
    let me = std::env::current_exe()?;
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|directory: &Path| directory.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("no {name} beside {}", me.display()))
}
