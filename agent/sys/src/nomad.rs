//! Threads that wander between namespaces.
//!
//! A socket belongs to the namespace of the thread that makes it, for good, and may then be used from
//! any thread. The proxy makes sockets in pods' namespaces all the time, so its worker threads are
//! *nomads*: each sits in the namespace where it last made a socket and moves only when the next one
//! belongs elsewhere.
//!
//! The invariant: **a worker thread's namespace is undefined unless [`enter`] has just succeeded on
//! it.** Whatever needs the node's namespace (netlink to the host, the CA, DNS, the operator's
//! socket's peers) runs on another thread; whatever makes a socket on a worker calls [`enter`] first,
//! with no await in between. A new thread starts where its creator is, so workers start none for such
//! work. A thread that sits in a namespace keeps it alive, hence [`leave`].

use std::{cell::Cell, path::Path, sync::OnceLock};

use crate::{Netns, Result};

thread_local! {
    /// Cookie of the namespace that this thread is known to be in; `None` when it is not known.
    static CURRENT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The agent's own namespace: that of the process's first thread, which never wanders, as it was when
/// first asked for.
pub fn home() -> Result<&'static Netns> {
    static HOME: OnceLock<Netns> = OnceLock::new();
    if let Some(home) = HOME.get() {
        return Ok(home);
    }
    let opened = Netns::open_any(Path::new("/proc/self/ns/net"))?;
    Ok(HOME.get_or_init(|| opened))
}

/// Moves the calling thread into `netns`. If it is there already, that costs only a comparison.
pub fn enter(netns: &Netns) -> Result<()> {
    if CURRENT.get() == Some(netns.cookie()) {
        return Ok(());
    }
    // Even if the move fails, the old value can no longer be trusted.
    CURRENT.set(None);
    netns.enter()?;
    CURRENT.set(Some(netns.cookie()));
    Ok(())
}

/// Moves the calling thread home if it is, or may be, in `netns`. Called on every worker when a pod
/// goes, so that no thread keeps the pod's namespace alive.
pub fn leave(netns: &Netns) -> Result<()> {
    match CURRENT.get() {
        Some(current) if current != netns.cookie() => Ok(()),
        _ => go_home(),
    }
}

/// Moves the calling thread into the agent's own namespace.
fn go_home() -> Result<()> {
    enter(home()?)
}

#[cfg(test)]
mod tests;
