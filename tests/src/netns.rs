//! One network namespace: entered by threads that exist for nothing else.
//!
//! `ip netns exec` is never used: it makes a mount namespace and remounts /sys, which hides the cgroup
//! and BPF file systems. `setns(CLONE_NEWNET)` acts on the calling thread alone, so every entry is a
//! new thread, and a program started by that thread begins its life inside.

use std::{
    fs::{self, File},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::{
    mount::mount_bind,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::syscalls::enter_new_network_namespace;

/// The directory of a world's namespaces, below the world's own. Not `/run/netns`, which iproute2
/// turns into a mount of its own that nobody would remove.
pub const DIRECTORY: &str = "netns";

/// A network namespace pinned by a path; whoever made the path removes it (see [`crate::world`]).
#[derive(Clone, Debug)]
pub struct Netns {
    path: Arc<Path>,
    file: Arc<File>,
}

impl Netns {
    /// Makes a namespace and pins it at `path`.
    pub fn create(path: &Path) -> Result<Self> {
        File::create(path).with_context(|| format!("create {}", path.display()))?;
        thread::scope(|scope| {
            let maker = scope.spawn(|| {
                enter_new_network_namespace().context("make a network namespace")?;
                mount_bind("/proc/thread-self/ns/net", path)
                    .with_context(|| format!("pin a network namespace at {}", path.display()))
            });
            maker.join().map_err(|_panic| anyhow!("making a namespace panicked"))?
        })?;
        Self::open(path)
    }

    /// Opens an existing namespace.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { path: path.into(), file: Arc::new(file) })
    }

    /// Returns the last part of the namespace's path.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the path that pins the namespace.
    pub fn path(&self) -> PathBuf {
        self.path.to_path_buf()
    }

    /// Has `ip` carry out a batch of commands inside the namespace.
    pub fn ip(&self, batch: &str) -> Result<()> {
        use std::io::Write as _;
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = self.run(|| {
            command.stderr(Stdio::piped()).spawn().context("start ip: apt-get install iproute2")
        })?;
        child.stdin.take().context("no standard input")?.write_all(batch.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "ip failed ({}): {}in the batch:\n{batch}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.enter()?;
                work()
            });
            entered
                .join()
                .map_err(|_panic| anyhow!("the work inside {} panicked", self.path.display()))?
        })
    }

    /// Starts a thread that lives inside the namespace; `work` may be long.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> thread::JoinHandle<Result<T>> {
        let inside = self.clone();
        thread::spawn(move || {
            inside.enter()?;
            work()
        })
    }

    /// Writes a `net.*` sysctl of this namespace; `key` is a path below `/proc/sys`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        self.run(|| {
            fs::write(&path, value).with_context(|| format!("write {value} to {}", path.display()))
        })
    }

    fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("setns into {}", self.path.display()))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
