//! A running two-node Kubernetes, made by `cargo xtask cluster up`. Tests handle it as its users do.
//!
//! `SLUICE_CLUSTER` names its directory, which is the whole contract with xtask:
//!
//! | path | what |
//! | --- | --- |
//! | `kubeconfig` | the administrator's; the API server answers in this machine's own network namespace |
//! | `bin/` | `kubectl`, `helm`, `ctr`, `cnitool` and the components |
//! | `net/PLACE`, `mnt/PLACE` | namespaces of `control`, `n1` and `n2`, for `nsenter --net=` and `--mount=` |
//! | `units/PLACE/NAME` | a script that starts a component; `NAME.pid` its process, `NAME.log` its log |
//! | `nodes/NODE/PATH` | what the node has at the standard path: `nodes/n1/etc/cni/net.d` |

use std::{
    fs,
    io::Write as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

mod api;
pub mod life;
mod mesh;
mod operator;

pub use self::{
    api::{Api, Line},
    mesh::{Away, SYSTEM},
    operator::{Asked, ask_with},
};
use crate::{Netns, cleanup};

/// The variable that tells tests which cluster to use.
const VARIABLE: &str = "SLUICE_CLUSTER";
/// The directory of the cluster that a developer starts by hand.
const BY_HAND: &str = "/run/sluice-cluster/dev";
/// How long a component may take to start or end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The nodes' names.
pub const NODES: [&str; 2] = ["n1", "n2"];

/// The image of test pods: busybox and `sluice-lab`.
pub const LAB_IMAGE: &str = concat!("sluice.dev/lab:", env!("CARGO_PKG_VERSION"));
/// The image of the agent and its plugin.
pub const SLUICE_IMAGE: &str = concat!("sluice.dev/sluice:", env!("CARGO_PKG_VERSION"));

/// A running cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    directory: PathBuf,
}

/// A Kubernetes namespace; dropping it deletes it with everything in it.
#[derive(Debug)]
pub struct Namespace {
    cluster: Cluster,
    name: String,
}

// === impl Cluster ===

impl Cluster {
    /// Opens the cluster that this test was told to use, or the developer's own. Never skips: without one it fails.
    pub fn open() -> Result<Self> {
        let told = std::env::var_os(VARIABLE);
        Self::at(told.map_or_else(|| PathBuf::from(BY_HAND), PathBuf::from))
    }

    /// Opens the cluster in this directory.
    pub fn at(directory: PathBuf) -> Result<Self> {
        ensure!(
            directory.join("complete").exists(),
            "there is no cluster in {}: run `cargo xtask test`, or `cargo xtask cluster up` before this test",
            directory.display()
        );
        Ok(Self { directory })
    }

    /// Returns the path of the administrator's kubeconfig, for programs that take one.
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.join("kubeconfig")
    }

    /// Returns a command that runs a program of the cluster as administrator, in this machine's own network namespace.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.directory.join("bin").join(name));
        command.env("KUBECONFIG", self.kubeconfig());
        command
    }

    /// Runs kubectl to its end and returns what it prints. On failure, the error contains what it says.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        finish(self.program("kubectl").args(arguments), "")
    }

    /// Runs helm to its end and returns what it prints.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        finish(self.program("helm").args(arguments), "")
    }

    /// Applies a manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        finish(self.program("kubectl").args(["apply", "-f", "-"]), manifest).map(drop)
    }

    /// Makes a namespace, once what an earlier test has left of it is gone.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        self.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--timeout=120s"])?;
        self.kubectl(&["create", "namespace", name])?;
        let namespace = Namespace { cluster: self.clone(), name: name.to_owned() };
        // Pods are refused until their service account is there.
        wait_for("the default service account", PATIENCE, || {
            Ok(namespace.kubectl(&["get", "serviceaccount", "default"]).is_ok())
        })?;
        Ok(namespace)
    }

    /// Returns the network namespace of `control`, `n1` or `n2`.
    pub fn netns(&self, place: &str) -> Result<Netns> {
        Netns::open(&self.directory.join("net").join(place))
    }

    /// Returns where a node's standard path, `/etc/cni/net.d` for instance, is seen from outside the node.
    pub fn on_node(&self, node: &str, path: &str) -> PathBuf {
        self.directory.join("nodes").join(node).join(path.trim_start_matches('/'))
    }

    /// Returns a command that runs a program in the network and mount namespaces of a place.
    pub fn inside(&self, place: &str, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        for (option, kind) in [("net", "net"), ("mount", "mnt")] {
            let path = self.directory.join(kind).join(place);
            command.arg(format!("--{option}={}", path.display()));
        }
        command.arg("--").arg(program);
        command
    }

    /// Kills a component, `n1/kubelet` for instance, as a crash would. What the component started goes on.
    pub fn kill(&self, unit: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(pid) = self.pid(unit) {
            // The pid is checked again once the descriptor is open: it may have had a new owner.
            if let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty())
                && self.pid(unit) == Some(pid)
            {
                pidfd_send_signal(&descriptor, Signal::KILL)?;
                cleanup::has_ended(&descriptor, PATIENCE)?;
            }
            ensure!(Instant::now() < deadline, "{unit} survived SIGKILL for {PATIENCE:?}");
        }
        Ok(())
    }

    /// Starts a component that has ended, with the arguments that it had before.
    pub fn start(&self, unit: &str) -> Result<()> {
        if self.pid(unit).is_some() {
            return Ok(());
        }
        let script = self.directory.join("units").join(unit);
        finish(Command::new("setsid").arg("--fork").arg(&script).current_dir("/"), "")?;
        wait_for(unit, PATIENCE, || Ok(self.pid(unit).is_some()))?;
        // A kubelet exits if containerd does not answer, and a caller may start it right after containerd.
        let Some(node) = unit.strip_suffix("/containerd") else { return Ok(()) };
        let socket = self.on_node(node, "/run/containerd/containerd.sock");
        wait_for("containerd's socket", PATIENCE, || Ok(UnixStream::connect(&socket).is_ok()))
    }

    /// Returns the process of a component, if it runs: the recorded one, while it is in the component's own cgroup.
    pub fn pid(&self, unit: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.directory.join("units").join(format!("{unit}.pid")));
        let pid: i32 = text.ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, state) = stat.rsplit_once(") ")?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let name = self.directory.file_name()?.to_string_lossy().into_owned();
        let group = format!("/sluice-cluster-{name}/{unit}");
        let is_ours = groups.lines().any(|line| line.starts_with("0::") && line.ends_with(&group));
        if is_ours && !state.starts_with('Z') { Pid::from_raw(pid) } else { None }
    }

    /// Returns the log of a component.
    pub fn log(&self, unit: &str) -> String {
        let log = fs::read(self.directory.join("units").join(format!("{unit}.log")));
        String::from_utf8_lossy(&log.unwrap_or_default()).into_owned()
    }

    /// Returns the directory of the cluster.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

// === impl Namespace ===

impl Namespace {
    /// Returns the namespace's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs kubectl in the namespace and returns what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut all = vec!["--namespace", &self.name];
        all.extend(arguments);
        self.cluster.kubectl(&all)
    }

    /// Applies a manifest in the namespace.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let mut kubectl = self.cluster.program("kubectl");
        finish(kubectl.args(["--namespace", &self.name, "apply", "-f", "-"]), manifest).map(drop)
    }

    /// Runs a command in a pod and returns what it prints.
    pub fn exec(&self, pod: &str, command: &[&str]) -> Result<String> {
        let mut all = vec!["exec", pod, "--"];
        all.extend(command);
        self.kubectl(&all)
    }

    /// Waits until pods are ready; `which` is a name (`pod/web`) or a selector (`-lapp=web`).
    pub fn await_ready(&self, which: &str) -> Result<()> {
        let kind = if which.starts_with('-') { vec!["pods", which] } else { vec![which] };
        let mut all = vec!["wait", "--for=condition=Ready", "--timeout=120s"];
        all.extend(kind);
        self.kubectl(&all).map(drop).or_else(|error| {
            let state = self.kubectl(&["describe", "pods"]).unwrap_or_default();
            bail!("{error:#}\n{state}")
        })
    }

    /// Returns a pod's address of each family, IPv4 first.
    pub fn addresses(&self, pod: &str) -> Result<Vec<String>> {
        let path = "jsonpath={.status.podIPs[*].ip}";
        let text = self.kubectl(&["get", "pod", pod, "-o", path])?;
        Ok(text.split(' ').map(str::to_owned).collect())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let arguments = ["delete", "namespace", &self.name, "--wait=false", "--ignore-not-found"];
        // If the whole cluster is being removed, there is nothing to report.
        if let Err(error) = self.cluster.kubectl(&arguments)
            && self.cluster.directory.join("complete").exists()
        {
            cleanup::report(&format!("namespace {} stays: {error:#}", self.name));
        }
    }
}

/// Waits until `holds` returns true. The error names `what` was waited for.
pub fn wait_for(
    what: &str,
    patience: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !holds()? {
        ensure!(Instant::now() < deadline, "waited {patience:?} in vain for {what}");
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn finish(command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
    // The program may end without reading; then its status says more than the broken pipe.
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes()).ok();
    let output = child.wait_with_output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}
