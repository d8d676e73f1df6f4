//! Checks what a run needs of the machine, and fails loudly: a skipped test would look like a passed one.

use std::{fs, os::fd::AsFd, path::PathBuf, sync::OnceLock};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use crate::syscalls::{Hook, Target, attached_programs};

/// The number of descriptors that the ordinary tests need.
const LEAST_DESCRIPTORS: u64 = 4096;
/// The number of descriptors for 10,000 connections when one process of the lab holds both ends.
const WANTED_DESCRIPTORS: u64 = 1 << 18;

/// Panics and names what is missing, unless this machine can run the tests. Never skips.
///
/// # Panics
///
/// If this is not root, or if what the lab needs of the kernel or a program that it drives is missing.
pub fn require_root() {
    static CHECKED: OnceLock<Result<(), String>> = OnceLock::new();
    let outcome = CHECKED.get_or_init(|| check().map_err(|error| format!("{error:#}")));
    assert!(outcome.is_ok(), "this machine cannot run namespace tests: {outcome:?}");
}

/// Checks the same as [`require_root`], for programs that report the error themselves.
pub fn check() -> Result<()> {
    ensure!(geteuid().is_root(), "not root: run as root, for instance with sudo");
    ensure!(find_program("ip").is_some(), "ip is not installed: apt-get install iproute2");
    let cgroup = cgroup_root()?;
    let directory =
        fs::File::open(&cgroup).with_context(|| format!("open {}", cgroup.display()))?;
    attached_programs(Target::Fd(directory.as_fd()), Hook::Connect4)
        .context("the kernel refuses bpf(BPF_PROG_QUERY): it needs CONFIG_CGROUP_BPF and root")?;
    raise_descriptor_limit()
}

/// Returns the mount point of the cgroup v2 hierarchy; beside v1 controllers it is often not `/sys/fs/cgroup`.
pub fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .find_map(|fields| match fields.as_slice() {
            [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
            _ => None,
        })
        .context("no cgroup v2 is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

/// Finds a program of this name on `PATH` or in the directories of administrators.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let directories = path.split(':').chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"]);
    directories
        .filter(|directory| !directory.is_empty())
        .map(|directory| PathBuf::from(directory).join(name))
        .find(|candidate| candidate.is_file())
}

/// Raises the limit of descriptors as far as root may on this machine: to exceed the hard limit takes
/// `CAP_SYS_RESOURCE`, which containers often lack.
pub fn raise_descriptor_limit() -> Result<()> {
    let now = getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= WANTED_DESCRIPTORS) {
        return Ok(());
    }
    let wanted = Some(WANTED_DESCRIPTORS);
    let beyond = Rlimit { current: wanted, maximum: now.maximum.max(wanted) };
    if setrlimit(Resource::Nofile, beyond).is_err() {
        let within = Rlimit { current: now.maximum, maximum: now.maximum };
        setrlimit(Resource::Nofile, within).context("raise the limit of open files")?;
    }
    let reached = descriptor_limit();
    ensure!(
        reached >= LEAST_DESCRIPTORS,
        "{reached} open files are too few: raise the hard limit to {LEAST_DESCRIPTORS} or more"
    );
    Ok(())
}

/// Returns how many descriptors this process, and each that it starts, may hold.
pub fn descriptor_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
