//! One network namespace: entered by threads that exist for nothing else.
//!
//! `ip netns exec` is never used: it makes a mount namespace and remounts /sys, which hides the cgroup
//! and BPF file systems. `setns(CLONE_NEWNET)` acts on the calling thread alone, so every entry is a
//! new thread, and a program started by that thread begins its life inside.

use std::{
    fs::{self, File},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where iproute2 keeps the names.
pub const NAMES: &str = "/run/netns";

/// A named network namespace; the name is removed by whoever created it (see [`crate::world`]).
#[derive(Clone, Debug)]
pub struct Netns {
    name: Arc<str>,
    file: Arc<File>,
}

impl Netns {
    /// Opens an existing namespace by its name.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new(NAMES).join(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { name: name.into(), file: Arc::new(file) })
    }

    /// The name, as in `ip netns list`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path that pins it.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMES).join(&*self.name)
    }

    /// Runs `work` on a thread inside the namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.enter()?;
                work()
            });
            entered.join().map_err(|_panic| anyhow!("the work inside {} panicked", self.name))?
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
            .with_context(|| format!("setns into {}", self.name))
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
