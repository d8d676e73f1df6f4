//! Everything that can go wrong between the agent and Linux, with what to do about it.

use std::{io, path::PathBuf};

/// Why an operation on a namespace, a link or a socket table failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The path of a namespace cannot be opened.
    #[error("cannot open the network namespace {path}: {source}; has the pod gone?")]
    Open {
        /// The path that was asked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The path leads to something else, such as the empty file that a deleted namespace leaves.
    #[error("{0} is not a network namespace; has the pod gone?")]
    NotANamespace(PathBuf),
    /// The path leads to the namespace that the agent itself runs in.
    #[error(
        "{0} is the agent's own network namespace: pods on the host's network cannot be enrolled"
    )]
    OwnNamespace(PathBuf),
    /// A thread could not enter a namespace.
    #[error("cannot enter a network namespace: {0}; the agent needs CAP_SYS_ADMIN")]
    Enter(#[source] io::Error),
    /// The agent may not examine pods' processes.
    #[error(
        "the network namespaces of pods' processes cannot be opened: {0}; the agent needs CAP_SYS_PTRACE"
    )]
    PodProcesses(#[source] io::Error),
    /// No thread could be started to enter a namespace.
    #[error("cannot start a thread for a network namespace: {0}; raise the limit on tasks")]
    Thread(#[source] io::Error),
    /// The code that ran inside the namespace panicked.
    #[error("BUG: a task inside a network namespace panicked")]
    Panicked,
    /// A namespace's cookie could not be read.
    #[error("cannot read a network namespace's cookie: {0}; Linux 5.14 or newer is needed")]
    Cookie(#[source] io::Error),
    /// A netlink conversation failed.
    #[error("cannot {what} over netlink: {source}{}", needs_net_admin(source))]
    Netlink {
        /// What the request was for.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A link by which packets could leave the pod unseen.
    #[error(
        "link {link:?} ({kind}) leads out of the pod past the guard: only veth pairs into the agent's \
         network namespace can be guarded"
    )]
    NotVeth {
        /// Name of the link inside the pod.
        link: String,
        /// The link's kind as `ip -d link` shows it; `device` if it has none.
        kind: String,
    },
    /// A veth whose other end is not where the agent can guard it.
    #[error(
        "the peer of veth {link:?} is not in the agent's network namespace: run the agent where the \
         pod's host links are"
    )]
    PeerElsewhere {
        /// Name of the link inside the pod.
        link: String,
    },
    /// The kernel cannot destroy sockets on request.
    #[error("this kernel cannot destroy TCP sockets (CONFIG_INET_DIAG_DESTROY is not set)")]
    DestroyUnsupported,
    /// The list of processes cannot be read.
    #[error(
        "cannot list the processes in {path}: {source}; mount the node's /proc there, or correct `proc:`"
    )]
    Processes {
        /// Where the node's processes were looked for.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// More than one process could be the kubelet.
    #[error(
        "processes {first} and {second} both look like this node's kubelet: name its cgroup (`kubelet:`)"
    )]
    SeveralKubelets {
        /// Process ID of one of them.
        first: u32,
        /// Process ID of another.
        second: u32,
    },
    /// The limit on open files cannot be raised.
    #[error("cannot raise the limit on open files: {0}")]
    OpenFiles(#[source] io::Error),
}

/// Names the missing capability if netlink refused for lack of permission.
fn needs_net_admin(source: &io::Error) -> &'static str {
    if source.kind() == io::ErrorKind::PermissionDenied {
        "; the agent needs CAP_NET_ADMIN"
    } else {
        ""
    }
}
