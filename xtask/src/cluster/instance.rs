//! One cluster: its name, its directory, and the addresses that follow from its number.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};

/// The directory of all clusters. Its path is short because the paths of Unix sockets below it must be.
const RECORDS: &str = "/run/sluice-cluster";
/// The directory for what is too big for a file system in memory: each cluster's images.
const ON_DISK: &str = "/var/lib/sluice-cluster";
/// The file that `up` writes last: a cluster without it is incomplete.
const COMPLETE: &str = "complete";
/// The file with the number that the cluster's addresses contain.
const NUMBER: &str = "number";

/// The name of the place where the API server and its companions run.
pub(crate) const CONTROL: &str = "control";
/// The nodes: the name that Kubernetes knows, and the number that ends their addresses.
pub(crate) const NODES: [Node; 2] =
    [Node { name: "n1", number: 1 }, Node { name: "n2", number: 2 }];

/// One of the two nodes.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    pub(crate) name: &'static str,
    number: u8,
}

/// A cluster that is, or may be, on this machine.
pub(crate) struct Instance {
    name: String,
    directory: PathBuf,
}

/// A lock held while a cluster is made or removed: clusters share numbers, mount points and the programs' cache.
pub(crate) struct Turn {
    _lock: File,
}

/// The addresses of one cluster. Pods and services have the same ones in every cluster, because these exist only in its
/// namespaces. The nodes' own addresses are on a link to this machine, so they contain the cluster's number.
#[derive(Clone, Copy)]
pub(crate) struct Addresses {
    number: u8,
}

// === impl Instance ===

impl Instance {
    /// Returns the cluster of this name, whether or not it exists.
    pub(crate) fn named(name: &str) -> Result<Self> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        ensure!(
            (1..=20).contains(&name.len()) && name.bytes().all(fits),
            "{name:?} cannot name a cluster: use 1 to 20 of a-z, 0-9 and `-`"
        );
        Ok(Self { name: name.to_owned(), directory: Path::new(RECORDS).join(name) })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the directory that holds everything of the cluster but its images.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the directory of the cluster's images.
    pub(crate) fn on_disk(&self) -> PathBuf {
        Path::new(ON_DISK).join(&self.name)
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.directory.join(below)
    }

    /// Returns the path of the administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path("kubeconfig")
    }

    /// Returns the path of a program of the cluster, kubectl for instance.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.path("bin").join(name)
    }

    /// Returns the `PATH` for what runs in the cluster; containerd looks for its shim there.
    pub(crate) fn path_variable(&self) -> String {
        format!(
            "{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            self.path("bin").display()
        )
    }

    pub(crate) fn exists(&self) -> bool {
        self.directory.exists()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.path(COMPLETE).exists()
    }

    pub(crate) fn set_complete(&self) -> Result<()> {
        self.write(COMPLETE, "")
    }

    pub(crate) fn require_up(&self) -> Result<()> {
        if self.is_complete() {
            return Ok(());
        }
        let name = &self.name;
        bail!(
            "there is no cluster `{name}` on this machine: run `cargo xtask cluster up --instance {name}`"
        )
    }

    /// Writes a file below the cluster's directory and makes the directories that it needs.
    pub(crate) fn write(&self, below: &str, text: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(below);
        let parent = path.parent().unwrap_or(&self.directory);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Makes the cluster's directory and takes the lowest number that no other cluster has.
    pub(crate) fn claim(&self, _turn: &Turn) -> Result<Addresses> {
        let taken: Vec<u8> = others(self).iter().filter_map(|path| number_in(path)).collect();
        let number = (0..=250)
            .find(|number| !taken.contains(number))
            .context("250 clusters are on this machine: remove one with `cluster down`")?;
        self.write(NUMBER, number.to_string())?;
        Ok(Addresses { number })
    }

    /// Returns the addresses of a cluster that exists.
    pub(crate) fn addresses(&self) -> Option<Addresses> {
        number_in(&self.directory).map(|number| Addresses { number })
    }

    /// Returns whether no other cluster is on this machine.
    pub(crate) fn is_alone(&self) -> bool {
        others(self).is_empty()
    }
}

// === impl Turn ===

impl Turn {
    /// Waits until no other xtask makes or removes a cluster.
    pub(crate) fn wait() -> Result<Self> {
        fs::create_dir_all(RECORDS).with_context(|| format!("cannot make {RECORDS}"))?;
        let path = Path::new(RECORDS).join(".lock");
        let lock =
            File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        flock(&lock, FlockOperation::LockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _lock: lock })
    }
}

// === impl Addresses ===

impl Addresses {
    /// Returns the address of the API server, in the range for tests of devices (RFC 2544), which nobody routes.
    pub(crate) fn control4(self) -> String {
        format!("198.18.{}.1", self.number)
    }

    pub(crate) fn control6(self) -> String {
        format!("fd00:5c1:{:x}::1", self.number)
    }

    pub(crate) fn node4(self, node: Node) -> String {
        format!("198.18.{}.{}", self.number, 10 + node.number)
    }

    pub(crate) fn node6(self, node: Node) -> String {
        format!("fd00:5c1:{:x}::1{}", self.number, node.number)
    }

    /// Returns this machine's own address on the cluster's link.
    pub(crate) fn root4(self) -> String {
        format!("198.18.{}.254", self.number)
    }

    pub(crate) fn root6(self) -> String {
        format!("fd00:5c1:{:x}::fe", self.number)
    }

    /// Returns the name of this machine's end of the link.
    pub(crate) fn root_link(self) -> String {
        format!("sluice-k{}", self.number)
    }

    pub(crate) fn server(self) -> String {
        format!("https://{}:6443", self.control4())
    }
}

// === impl Node ===

impl Node {
    pub(crate) fn pods4(self) -> String {
        format!("10.244.{}.0/24", self.number)
    }

    pub(crate) fn pods6(self) -> String {
        format!("fd00:10:244:{}::/64", self.number)
    }

    /// Returns the node's zone. Each node has its own, which makes locality visible.
    pub(crate) fn zone(self) -> String {
        format!("z{}", self.number)
    }
}

pub(crate) const PODS: &str = "10.244.0.0/16,fd00:10:244::/48";
pub(crate) const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
pub(crate) const DNS: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
/// The first address of [`SERVICES`]: `kubernetes.default`.
pub(crate) const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];

/// Returns the directories of the other clusters.
fn others(instance: &Instance) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(RECORDS) else { return Vec::new() };
    let paths = entries.flatten().map(|entry| entry.path());
    paths.filter(|path| path.is_dir() && path != instance.directory()).collect()
}

fn number_in(directory: &Path) -> Option<u8> {
    fs::read_to_string(directory.join(NUMBER)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        for name in ["", "..", "a/b", "A", "a b", "twenty-one-characters"] {
            assert!(Instance::named(name).is_err(), "{name}");
        }
        assert!(Instance::named("dev").is_ok());
    }

    #[test]
    fn clusters_of_different_numbers_share_no_address() {
        let [first, second] = [Addresses { number: 0 }, Addresses { number: 16 }];
        assert_eq!(first.control4(), "198.18.0.1");
        assert_ne!(first.control6(), second.control6());
        assert_ne!(first.root_link(), second.root_link());
        assert!(Addresses { number: 250 }.root_link().len() <= 15);
    }
}
