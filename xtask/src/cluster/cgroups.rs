//! The cluster's own cgroup subtree: every process in it was started by the cluster, whoever its parent is now.
//!
//! This is how `down` ends everything of the cluster and nothing else. On a machine with version 1 controllers beside
//! version 2 (hybrid), pods are in a subtree of the same name in each hierarchy.
//!
//! CPU time is shared as on a node of its own: pods as a whole against each component. If components stayed in the root
//! group, each of their threads would weigh as much as all pods.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::instance::Instance;

/// How long processes may take to end: they release memory and mounts first, which takes seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many processes outside the cluster it weighs as much as, when there is too little CPU time for all.
const WEIGHT: u32 = 10;

/// The mount points of the cgroup hierarchies.
pub(crate) struct Hierarchies {
    unified: PathBuf,
    /// The hierarchies of version 1: most machines have none today.
    legacy: Vec<PathBuf>,
}

// === impl Hierarchies ===

impl Hierarchies {
    pub(crate) fn find() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
        Self::read(&mounts).context(
            "no cgroup v2 is mounted, which pods are told apart by: `mkdir -p /sys/fs/cgroup/unified && mount -t \
             cgroup2 none /sys/fs/cgroup/unified`",
        )
    }

    fn read(mounts: &str) -> Option<Self> {
        let of_kind = |kind: &str| -> Vec<PathBuf> {
            let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            fields
                .filter_map(|fields| match fields.as_slice() {
                    [_, path, found, ..] if *found == kind => Some(PathBuf::from(path)),
                    _ => None,
                })
                .collect()
        };
        let unified = of_kind("cgroup2").into_iter().next()?;
        Some(Self { unified, legacy: of_kind("cgroup") })
    }

    /// Makes the subtree of a place; a kubelet can then make its own below it.
    pub(crate) fn make(&self, instance: &Instance, place: &str) -> Result<()> {
        let group = format!("{}/{place}", root(instance));
        for hierarchy in self.all() {
            make_directories(&hierarchy.join(&group))?;
        }
        if self.legacy.is_empty() {
            for level in [String::new(), root(instance), group.clone()] {
                hand_on_controllers(&self.unified.join(level));
            }
        }
        self.weigh(instance);
        if let Some(cpuset) = self.legacy.iter().find(|path| path.ends_with("cpuset")) {
            // A version 1 cpuset begins empty, and an empty one accepts no process.
            for level in [root(instance), group] {
                for file in ["cpuset.cpus", "cpuset.mems"] {
                    copy(&cpuset.join(file), &cpuset.join(&level).join(file))?;
                }
            }
        }
        Ok(())
    }

    /// Gives the whole cluster its share of the CPU time.
    fn weigh(&self, instance: &Instance) {
        let (file, default) = match self.cpu() {
            Some(legacy) => (legacy.join(root(instance)).join("cpu.shares"), 1024),
            None => (self.unified.join(root(instance)).join("cpu.weight"), 100),
        };
        // A failure is ignored: without this the cluster is slower on a busy machine, and the same otherwise.
        fs::write(&file, (WEIGHT * default).to_string()).ok();
    }

    /// The hierarchy of version 1 that shares CPU time, if version 2's does not.
    fn cpu(&self) -> Option<&PathBuf> {
        let is_cpu = |path: &&PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.split(',').any(|controller| controller == "cpu")
        };
        self.legacy.iter().find(is_cpu)
    }

    /// Makes the groups of one component and returns their paths. Each component has its own: Sluice recognises a kubelet
    /// by it, and `stop` checks by it that it kills the right process.
    pub(crate) fn make_for_unit(
        &self,
        instance: &Instance,
        place: &str,
        name: &str,
    ) -> Result<Vec<PathBuf>> {
        let group = Path::new(&root(instance)).join(place).join(name);
        let groups: Vec<_> =
            self.cpu().into_iter().chain([&self.unified]).map(|path| path.join(&group)).collect();
        groups.iter().try_for_each(|group| make_directories(group))?;
        Ok(groups)
    }

    /// Kills every process of the cluster and waits until the last one is gone.
    pub(crate) fn kill(&self, instance: &Instance) -> Result<()> {
        let group = self.unified.join(root(instance));
        if !group.exists() {
            return Ok(());
        }
        // Linux 5.14: one write for the whole subtree, which no fork escapes.
        let kill = group.join("cgroup.kill");
        fs::write(&kill, "1").with_context(|| format!("cannot write {}", kill.display()))?;
        let deadline = Instant::now() + PATIENCE;
        while is_populated(&group) {
            if Instant::now() > deadline {
                bail!("processes in {} survived SIGKILL for {PATIENCE:?}", group.display());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Removes the subtree from every hierarchy. Its processes must be gone.
    pub(crate) fn remove(&self, instance: &Instance) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for hierarchy in self.all() {
            let group = hierarchy.join(root(instance));
            while let Err(error) = remove_directories(&group) {
                // A process that ends leaves its version 1 groups a moment later.
                if Instant::now() > deadline {
                    return Err(error);
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.legacy.iter().chain([&self.unified])
    }
}

/// Returns the path of the cluster's group, relative to each hierarchy's root.
pub(crate) fn root(instance: &Instance) -> String {
    format!("sluice-cluster-{}", instance.name())
}

/// Returns whether a process is in the group or below it.
pub(crate) fn is_populated(group: &Path) -> bool {
    fs::read_to_string(group.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Lets the children of a version 2 group use each controller that the group itself has.
fn hand_on_controllers(group: &Path) {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        // A failure is ignored: the kubelet names a controller that it misses.
        fs::write(group.join("cgroup.subtree_control"), format!("+{controller}")).ok();
    }
}

fn make_directories(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make the cgroup {}", path.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let text =
        fs::read_to_string(from).with_context(|| format!("cannot read {}", from.display()))?;
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))
}

/// Removes groups from the leaves up. The files in them belong to the kernel and go with them.
fn remove_directories(group: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(group) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_directories(&entry.path())?;
    }
    fs::remove_dir(group).with_context(|| format!("cannot remove the cgroup {}", group.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_and_unified_machines_are_told_apart() {
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let hierarchies = Hierarchies::read(unified).unwrap();
        assert_eq!(hierarchies.unified, Path::new("/sys/fs/cgroup"));
        assert!(hierarchies.legacy.is_empty() && hierarchies.cpu().is_none());
        let hybrid = "cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
                      cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let hierarchies = Hierarchies::read(hybrid).unwrap();
        assert_eq!(hierarchies.unified, Path::new("/sys/fs/cgroup/unified"));
        let legacy = ["cpuset", "cpu,cpuacct"].map(|name| Path::new("/sys/fs/cgroup").join(name));
        assert_eq!(hierarchies.legacy, legacy);
        assert_eq!(hierarchies.cpu(), Some(&legacy[1]));
        assert!(Hierarchies::read("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n").is_none());
    }
}
