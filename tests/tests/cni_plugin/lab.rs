//! A node whose pods are made by real plugins, chained with ours, through the reference runtime library's
//! own tool.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{
    Family, Lab, MeshFile, Netns, NodeName, Process, World,
    agent::sibling,
    mesh::{MODE, replace},
    netns,
};

/// The name of the network.
const NETWORK: &str = "pods";
/// The only address that the network gives.
const ADDRESS: &str = "10.77.1.200";
/// The last byte of the first sandbox's address, when there are many.
const FIRST_ADDRESS: u8 = 201;
/// Where xtask keeps the tools, below the user's cache directory.
const CACHE: &str = "sluice/tools";

/// The outcome of a `cnitool` command.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) succeeded: bool,
    pub(crate) output: String,
}

/// Two nodes with agents, and one sandbox on the first that has no interface yet.
pub(crate) struct Node {
    pub(crate) lab: Lab,
    pub(crate) sandbox: Netns,
    directory: PathBuf,
    programs: Vec<PathBuf>,
}

/// One of many sandboxes, each with a network that gives one address.
pub(crate) struct Sandbox {
    pub(crate) name: String,
    pub(crate) netns: Netns,
    address: String,
    directory: PathBuf,
}

impl Node {
    /// Starts the agents, with a pod `server` in the mesh on the other node.
    pub(crate) fn start() -> Result<Self> {
        let programs = programs()?;
        let world = World::builder().pod("near", NodeName::A).pod("server", NodeName::B).build()?;
        let directory = world.directory().join("net.d");
        fs::create_dir_all(&directory)?;
        let sandbox = Netns::create(&world.directory().join(netns::DIRECTORY).join("fresh"))?;
        // A runtime leaves a sandbox in this state.
        sandbox.ip("link set lo up\n")?;
        let lab = Lab::start(world, &["server"])?;
        Ok(Self { lab, sandbox, directory, programs })
    }

    /// Lists the sandbox as the pod `fresh`, in the mesh or outside; does not wait.
    pub(crate) fn list_pod(&mut self, in_mesh: bool) -> Result<()> {
        let netns = self.sandbox.path();
        self.lab.write_mesh(|mesh| {
            mesh.pods.retain(|pod| pod.name != "fresh");
            list(mesh, "fresh", ADDRESS, &netns, in_mesh)
        })
    }

    /// Makes `count` sandboxes, listed as pods of the mesh.
    pub(crate) fn sandboxes(&mut self, count: u8) -> Result<Vec<Sandbox>> {
        let mut sandboxes = Vec::new();
        for number in 0..count {
            let name = format!("rush-{number}");
            let netns =
                Netns::create(&self.lab.world.directory().join(netns::DIRECTORY).join(&name))?;
            netns.ip("link set lo up\n")?;
            let address = format!("10.77.1.{}", FIRST_ADDRESS + number);
            let directory = self.directory.join(&name);
            fs::create_dir_all(&directory)?;
            self.write_list_to(&directory, "1.1.0", &address)?;
            sandboxes.push(Sandbox { name, netns, address, directory });
        }
        self.lab.write_mesh(|mesh| {
            for sandbox in &sandboxes {
                list(mesh, &sandbox.name, &sandbox.address, &sandbox.netns.path(), true)?;
            }
            Ok(())
        })?;
        Ok(sandboxes)
    }

    /// Writes a network list with ptp and our plugin.
    pub(crate) fn write_list(&self, version: &str) -> Result<()> {
        self.write_list_to(&self.directory, version, ADDRESS)
    }

    fn write_list_to(&self, directory: &Path, version: &str, address: &str) -> Result<()> {
        let data = self.lab.world.directory().join("leases");
        let list = json!({
            "cniVersion": version,
            "name": NETWORK,
            "plugins": [
                {
                    "type": "ptp",
                    "mtu": 1400,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": data,
                        "ranges": [[{
                            "subnet": "10.77.1.192/26", "rangeStart": address, "rangeEnd": address,
                        }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                    },
                },
                {
                    "type": "sluice-cni",
                    "socket": self.socket(),
                    "excludeNamespaces": ["kube-system"],
                    "ownPods": [{ "namespace": "sluice-system", "namePrefix": "sluice-agent-" }],
                },
            ],
        });
        replace(&directory.join("10-pods.conflist"), &list.to_string())
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.lab.world.directory().join(NodeName::A.as_str()).join("cni.sock")
    }

    /// Has `cnitool` carry out a command on the sandbox, on the first node.
    pub(crate) fn tool(&self, command: &str) -> Result<Answer> {
        self.tool_for(command, "")
    }

    /// Does the same as [`Self::tool`], with arguments as Kubernetes gives them.
    pub(crate) fn tool_for(&self, command: &str, arguments: &str) -> Result<Answer> {
        self.tool_in(&self.directory, &self.sandbox, command, arguments)
    }

    /// Does the same as [`Self::tool`] with one of many sandboxes.
    pub(crate) fn tool_with(&self, command: &str, sandbox: &Sandbox) -> Result<Answer> {
        self.tool_in(&sandbox.directory, &sandbox.netns, command, "")
    }

    fn tool_in(
        &self,
        directory: &Path,
        sandbox: &Netns,
        command: &str,
        arguments: &str,
    ) -> Result<Answer> {
        let mut tool = Command::new(find("cnitool", &self.programs)?);
        tool.args([command, NETWORK]).arg(sandbox.path());
        let path = std::env::join_paths(&self.programs)?;
        tool.env("CNI_PATH", path).env("NETCONFPATH", directory);
        if !arguments.is_empty() {
            tool.env("CNI_ARGS", arguments);
        }
        let output = Process::output(self.lab.world.node(NodeName::A), &mut tool)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let output_text = text(&output.stdout) + &text(&output.stderr);
        Ok(Answer { succeeded: output.status.success(), output: output_text })
    }

    /// Calls our plugin's GC, as a runtime does that knows which attachments are valid.
    pub(crate) fn collect_garbage(&self, valid: &Value) -> Result<()> {
        let config = json!({
            "cniVersion": "1.1.0", "name": NETWORK, "type": "sluice-cni", "socket": self.socket(),
            "cni.dev/valid-attachments": valid,
        });
        let mut plugin = Command::new(sibling("sluice-cni")?)
            .env("CNI_COMMAND", "GC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        plugin
            .stdin
            .take()
            .context("no standard input")?
            .write_all(config.to_string().as_bytes())?;
        let output = plugin.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// Returns the address at which the pod on the other node answers.
    pub(crate) fn server(&self, port: u16) -> Result<SocketAddr> {
        Ok(self.lab.pod("server")?.at(Family::V4, port))
    }
}

impl Answer {
    pub(crate) fn ok(self) -> Result<String> {
        ensure!(self.succeeded, "{}", self.output);
        Ok(self.output)
    }

    /// Fails unless the command failed and its output contains `text`.
    pub(crate) fn failed_saying(&self, text: &str) -> Result<()> {
        ensure!(!self.succeeded, "it succeeded: {}", self.output);
        ensure!(self.output.contains(text), "not {text:?} but {}", self.output);
        Ok(())
    }

    /// Returns the result that ADD printed.
    pub(crate) fn result(self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok()?)?)
    }
}

/// Adds a pod of the first node to the mesh file.
fn list(mesh: &mut MeshFile, name: &str, address: &str, netns: &Path, in_mesh: bool) -> Result<()> {
    let mut pod = mesh.pod("near")?.clone();
    name.clone_into(&mut pod.name);
    name.clone_into(&mut pod.service_account);
    pod.addresses = vec![address.parse()?];
    netns.clone_into(&mut pod.netns);
    if in_mesh {
        pod.labels.insert(MODE.to_owned(), "ambient".to_owned());
    }
    mesh.pods.push(pod);
    Ok(())
}

/// Returns the directories of `cnitool`, the reference plugins and ours.
fn programs() -> Result<Vec<PathBuf>> {
    let ours = sibling("sluice-cni").context("build it with `cargo xtask build`")?;
    let mut found = vec![ours.parent().context("a program without a directory")?.to_owned()];
    let cache = match std::env::var_os("SLUICE_CNI_TOOLS") {
        Some(directory) => vec![directory.into()],
        None => cached()?,
    };
    for name in ["cnitool", "ptp", "host-local"] {
        let program = find(name, &cache).with_context(|| {
            format!(
                "{name} is needed to call the plugin as a runtime does: `cargo xtask test` builds it \
                 once, or set SLUICE_CNI_TOOLS to the directory that has it"
            )
        })?;
        let directory = program.parent().context("a program without a directory")?.to_owned();
        if !found.contains(&directory) {
            found.push(directory);
        }
    }
    Ok(found)
}

/// Returns every directory of the tools' cache, each after its `bin`.
fn cached() -> Result<Vec<PathBuf>> {
    let cache = match std::env::var_os("XDG_CACHE_HOME").filter(|cache| !cache.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => Path::new(&std::env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    let entries = fs::read_dir(cache.join(CACHE)).context("no cache of tools")?;
    Ok(entries.flatten().flat_map(|entry| [entry.path().join("bin"), entry.path()]).collect())
}

fn find(name: &str, directories: &[PathBuf]) -> Result<PathBuf> {
    let is_program = |path: &PathBuf| {
        fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 1 != 0)
    };
    let candidates = directories.iter().map(|directory| directory.join(name));
    candidates.into_iter().find(is_program).with_context(|| format!("there is no {name}"))
}
