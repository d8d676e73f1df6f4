//! The agent's own configuration: one YAML file, read once at start.

mod ca;
mod kube;
mod trust;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};
use sluice_spiffe::TrustDomain;

pub use self::ca::{CaConfig, IstioConfig};
pub use self::kube::{KubernetesConfig, SourceConfig};
pub use self::trust::{StaleCrls, TrustConfig};
use self::{ca::WrittenCa, kube::WrittenKubernetes, trust::WrittenTrust};
use crate::{FileError, Problem, names, yaml};

/// The most worker threads for which the datapath has listeners.
const MAX_WORKERS: usize = 8;
const MIN_DEFAULT_WORKERS: usize = 2;
/// One worker serves the applications of about this many cores.
const CORES_PER_WORKER: usize = 4;
/// `sun_path` holds 108 bytes with the terminating zero (unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;
const MAX_INSTANCE_BYTES: usize = 63;
const NODE_VARIABLE: &str = "SLUICE_NODE";

/// How an agent is set up. Paths that are relative in the file have been joined with the file's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// Name of the agent's node in the state of the mesh. If the file does not say, the variable `SLUICE_NODE` does:
    /// one file can then serve every node of a cluster.
    pub node: String,
    /// Trust domain of the mesh; `cluster.local` by default.
    pub trust_domain: TrustDomain,
    /// Name of the pin directory, which lets several agents share a kernel; the node's name by default.
    pub instance: String,
    /// Where state that outlives the agent is kept; `/var/lib/sluice` by default.
    pub state_dir: PathBuf,
    /// The operator's socket; `/run/sluice/agent.sock` by default.
    pub socket: PathBuf,
    /// The CNI plugin's socket; `cni.sock` beside the operator's by default.
    pub cni_socket: PathBuf,
    /// Where the node's processes are listed; `/proc` by default. An agent in a container has them
    /// mounted elsewhere.
    pub proc: PathBuf,
    /// Mount point of cgroup v2, or a directory inside or above it; `None` has it looked up in `/proc/mounts`.
    pub cgroup: Option<PathBuf>,
    /// The directory of the kubelet's cgroup (v2), below the mount point; `None` has the kubelet looked for among the
    /// node's processes.
    pub kubelet_cgroup: Option<PathBuf>,
    /// Mount point of the BPF file system; `/sys/fs/bpf` by default.
    pub bpffs: PathBuf,
    /// Worker threads, 1 to 8; a quarter of the cores, but at least two, by default.
    pub workers: usize,
    /// Level of the logs; `info` by default.
    pub log_level: String,
    /// Who issues certificates.
    pub ca: CaConfig,
    /// The lifetime to ask for in certificates; `None` leaves it at the default (24 h).
    pub certificate_ttl: Option<Duration>,
    /// The files that say who is believed.
    pub trust: TrustConfig,
    /// Where metrics and health are served (HTTP); `None` serves none.
    pub metrics: Option<SocketAddr>,
    /// How long a stopping agent lets open connections end by themselves; not at all by default.
    pub drain: Duration,
    /// Where the state of the mesh comes from.
    pub source: SourceConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written {
    #[serde(default)]
    node: Option<Spanned<String>>,
    #[serde(default)]
    trust_domain: Option<Spanned<String>>,
    #[serde(default)]
    instance: Option<Spanned<String>>,
    #[serde(default)]
    state_dir: Option<PathBuf>,
    #[serde(default)]
    socket: Option<Spanned<PathBuf>>,
    #[serde(default)]
    cni_socket: Option<Spanned<PathBuf>>,
    #[serde(default)]
    proc: Option<PathBuf>,
    #[serde(default)]
    cgroup: Option<PathBuf>,
    #[serde(default)]
    kubelet: Option<WrittenKubelet>,
    #[serde(default)]
    bpffs: Option<PathBuf>,
    #[serde(default)]
    workers: Option<Spanned<usize>>,
    #[serde(default)]
    log_level: Option<String>,
    #[serde(default)]
    ca: Option<Spanned<WrittenCa>>,
    #[serde(default)]
    trust: Option<WrittenTrust>,
    #[serde(default)]
    metrics: Option<Spanned<String>>,
    #[serde(default)]
    drain_seconds: u16,
    #[serde(default)]
    mesh: Option<Spanned<PathBuf>>,
    #[serde(default)]
    policies: Option<Spanned<PathBuf>>,
    #[serde(default)]
    kubernetes: Option<Spanned<WrittenKubernetes>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenKubelet {
    cgroup: PathBuf,
}

// === impl AgentConfig ===

impl AgentConfig {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, FileError> {
        let unreadable = |error: std::io::Error| FileError::Unreadable {
            file: path.to_owned(),
            reason: error.to_string(),
        };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        // Made absolute now: the agent may change its directory, and does change its namespaces.
        let whole = std::path::absolute(path).map_err(unreadable)?;
        let this_node = std::env::var(NODE_VARIABLE).ok();
        Self::parse(path, whole.parent().unwrap_or(Path::new("/")), &text, this_node)
    }

    fn parse(
        file: &Path,
        directory: &Path,
        text: &str,
        this_node: Option<String>,
    ) -> Result<Self, FileError> {
        let written: Written = yaml::parse(file, text)?;
        let refuse = |at: Location, field: &str, problem| yaml::content(file, at, field, problem);
        let node = written.node.map(taken).or(this_node.map(|node| (node, Location::UNKNOWN)));
        let (node, referenced) =
            node.ok_or_else(|| refuse(Location::UNKNOWN, "node", Problem::NoNode))?;
        if !names::is_subdomain(&node) {
            return Err(refuse(referenced, "node", Problem::NotASubdomain(node)));
        }
        let trust_domain =
            written.trust_domain.map_or(("cluster.local".to_owned(), Location::UNKNOWN), taken);
        let trust_domain = trust_domain.0.parse().map_err(|error| {
            refuse(trust_domain.1, "trustDomain", Problem::NotATrustDomain(error))
        })?;
        let (instance, at) = written.instance.map_or((node.clone(), referenced), taken);
        if !is_instance(&instance) {
            return Err(refuse(at, "instance", Problem::NotAnInstance(instance)));
        }
        let join = |path: Option<PathBuf>, default: &str| {
            directory.join(path.unwrap_or_else(|| PathBuf::from(default)))
        };
        let (socket, cni_socket) = sockets(file, directory, written.socket, written.cni_socket)?;
        let (workers, at) =
            written.workers.map_or_else(|| (default_workers(), Location::UNKNOWN), taken);
        if !(1..=MAX_WORKERS).contains(&workers) {
            return Err(refuse(at, "workers", Problem::Workers(workers)));
        }
        let metrics = written.metrics.map(taken).map(|(text, at)| {
            let refused = |_unreadable| Problem::NotASocketAddress(text.clone());
            text.parse().map_err(refused).map_err(|problem| refuse(at, "metrics", problem))
        });
        let Written { mesh, policies, kubernetes, drain_seconds, .. } = written;
        let source = kube::read(file, directory, kube::Written { mesh, policies, kubernetes })?;
        let state_dir = join(written.state_dir, "/var/lib/sluice");
        let (ca, certificate_ttl) = ca::read(file, directory, &state_dir, written.ca)?;
        Ok(Self {
            ca,
            certificate_ttl,
            trust: trust::read(file, directory, &trust_domain, written.trust)?,
            metrics: metrics.transpose()?,
            node,
            trust_domain,
            instance,
            state_dir,
            socket,
            cni_socket,
            proc: join(written.proc, "/proc"),
            cgroup: written.cgroup.map(|path| directory.join(path)),
            kubelet_cgroup: written.kubelet.map(|kubelet| directory.join(kubelet.cgroup)),
            bpffs: join(written.bpffs, "/sys/fs/bpf"),
            workers,
            log_level: written.log_level.unwrap_or_else(|| "info".to_owned()),
            drain: Duration::from_secs(drain_seconds.into()),
            source,
        })
    }
}

/// Returns the paths of the operator's socket and the CNI plugin's.
fn sockets(
    file: &Path,
    directory: &Path,
    operator: Option<Spanned<PathBuf>>,
    cni: Option<Spanned<PathBuf>>,
) -> Result<(PathBuf, PathBuf), FileError> {
    let checked = |field: &str, (path, at): (PathBuf, Location)| {
        let path = directory.join(path);
        if path.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(yaml::content(file, at, field, Problem::SocketPathTooLong(path)));
        }
        Ok(path)
    };
    let default = || (PathBuf::from("/run/sluice/agent.sock"), Location::UNKNOWN);
    let operator = checked("socket", operator.map_or_else(default, taken))?;
    let beside = || (operator.with_file_name("cni.sock"), Location::UNKNOWN);
    let cni = checked("cniSocket", cni.map_or_else(beside, taken))?;
    Ok((operator, cni))
}

fn taken<T>(spanned: Spanned<T>) -> (T, Location) {
    (spanned.value, spanned.referenced)
}

fn is_instance(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=MAX_INSTANCE_BYTES).contains(&text.len())
        && text.bytes().all(allowed)
        && !text.starts_with('.')
}

fn default_workers() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / CORES_PER_WORKER).clamp(MIN_DEFAULT_WORKERS, MAX_WORKERS)
}

#[cfg(test)]
mod tests;
