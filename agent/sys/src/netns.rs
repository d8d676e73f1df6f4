//! Network namespaces: opening, naming and working inside them.

use std::{
    fmt,
    fs::{self, File},
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::{Arc, OnceLock},
    thread,
};

use rustix::{
    net::{AddressFamily, SocketFlags, SocketType},
    thread::LinkNameSpaceType,
};

use crate::{Error, Result, nomad, option};

/// File that holds the range of ports from which the kernel chooses, for both families.
const PORT_RANGE: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// The kernel's default for that range.
const DEFAULT_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// An open network namespace. Clones share one descriptor; while one lives, the namespace does too.
#[derive(Clone)]
pub struct Netns(Arc<Inner>);

/// Identifies a namespace by its file; another namespace may have the same identity once this one
/// is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// Device number of the file system.
    pub device: u64,
    /// Inode number of the namespace.
    pub inode: u64,
}

struct Inner {
    file: OwnedFd,
    id: NetnsId,
    cookie: u64,
    ports: OnceLock<RangeInclusive<u16>>,
}

// === impl Netns ===

impl Netns {
    /// Opens a pod's namespace: a bind mount such as `/run/netns/x`, or `/proc/<pid>/ns/net`.
    ///
    /// # Errors
    ///
    /// Besides errors of the file system, [`Error::OwnNamespace`] if the path leads to the
    /// namespace of the calling thread or of the agent. Enrolling that one would capture the node.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let opened = Self::open_any(path)?;
        if opened.is_own()? {
            return Err(Error::OwnNamespace(path.to_owned()));
        }
        Ok(opened)
    }

    /// Whether it is the namespace of the calling thread or of the agent.
    pub(crate) fn is_own(&self) -> Result<bool> {
        Ok([nomad::home()?, &Self::current()?].iter().any(|own| own.cookie() == self.cookie()))
    }

    /// Returns the namespace that the calling thread is in.
    pub fn current() -> Result<Self> {
        Self::open_any("/proc/thread-self/ns/net".as_ref())
    }

    /// Opens the namespace at `path`, even if it is the agent's own.
    pub(crate) fn open_any(path: &Path) -> Result<Self> {
        let file =
            File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Self::from_file(file, path)
    }

    /// Wraps an open namespace file; `path` names it in errors.
    pub(crate) fn from_file(file: File, path: &Path) -> Result<Self> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let status = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
        let file = OwnedFd::from(file);
        let cookie = match in_namespace(file.as_fd(), cookie_of_calling_thread) {
            Ok(cookie) => cookie?,
            Err(Error::Enter(error)) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(Error::NotANamespace(path.to_owned()));
            }
            Err(error) => return Err(error),
        };
        let id = NetnsId { device: status.st_dev, inode: status.st_ino };
        Ok(Self(Arc::new(Inner { file, id, cookie, ports: OnceLock::new() })))
    }

    /// The kernel's name for the namespace, never used twice while the machine runs
    /// (`SO_NETNS_COOKIE`, Linux 5.14); BPF programs read the same value.
    pub fn cookie(&self) -> u64 {
        self.0.cookie
    }

    /// Device and inode of the namespace's file. Compare them to learn which namespace a path leads
    /// to now.
    pub fn id(&self) -> NetnsId {
        self.0.id
    }

    /// Runs `task` inside the namespace, on a thread made for it, and waits. Even if the task fails,
    /// no thread that outlives it has changed namespaces.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> Result<T> {
        in_namespace(self.as_fd(), task)
    }

    /// Returns the ports from which the kernel chooses for a socket that has none, as they were when this
    /// handle was first asked; Linux's default if they cannot be read.
    pub fn ports(&self) -> &RangeInclusive<u16> {
        self.0.ports.get_or_init(|| {
            let range = self.run(|| fs::read_to_string(PORT_RANGE));
            range.ok().and_then(Result::ok).and_then(|range| parse(&range)).unwrap_or(DEFAULT_PORTS)
        })
    }

    /// Moves the calling thread into the namespace.
    pub(crate) fn enter(&self) -> Result<()> {
        enter(self.as_fd())
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.file.as_fd()
    }
}

impl fmt::Debug for Netns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netns").field("id", &self.0.id).field("cookie", &self.0.cookie).finish()
    }
}

fn enter(namespace: BorrowedFd<'_>) -> Result<()> {
    rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))
        .map_err(|error| Error::Enter(error.into()))
}

fn in_namespace<T: Send>(namespace: BorrowedFd<'_>, task: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| {
        let inside = move || enter(namespace).map(|()| task());
        thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, inside)
            .map_err(Error::Thread)?
            .join()
            .unwrap_or(Err(Error::Panicked))
    })
}

fn parse(range: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = range.trim().split_once(char::is_whitespace)?;
    let range = first.parse().ok()?..=last.trim().parse().ok()?;
    (!range.is_empty()).then_some(range)
}

/// Asks a new socket: a socket of any kind knows the cookie of the namespace where it was made. A
/// Unix one can always be made.
fn cookie_of_calling_thread() -> Result<u64> {
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| Error::Cookie(error.into()))?;
    option::get_u64(&socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE).map_err(Error::Cookie)
}

#[cfg(test)]
mod tests;
