//! What can go wrong with the datapath, and what to do about it.

use std::{io, net::IpAddr, path::PathBuf};

/// Why the datapath could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The agent was built before its kernel programs.
    #[error("built without BPF bytecode: run `cargo xtask build`")]
    NoBytecode,
    /// A directory, mount or pin could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    Path {
        /// What was tried.
        action: &'static str,
        /// The path on which it was tried.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cgroup that the hooks attach to is not a version 2 one.
    #[error("{} is not in a cgroup v2 hierarchy: mount one and name it in the configuration (`cgroup:`)", .0.display())]
    NotCgroup2(PathBuf),
    /// An instance name that cannot be a directory.
    #[error("instance name {0:?} must be 1 to 64 of [a-z0-9.-] and start with a letter or digit")]
    InstanceName(String),
    /// The object could not be read, or its maps could not be created.
    #[error(
        "cannot load the BPF object: {0}; the agent needs root (CAP_BPF, CAP_NET_ADMIN) and Linux 5.15 or later"
    )]
    Load(#[source] Box<aya::EbpfError>),
    /// The verifier refused a program.
    #[error("the kernel refuses program {program}: {source}; Linux 5.15 or later is needed")]
    Verify {
        /// Name of the program.
        program: &'static str,
        /// The verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object lacks a program or map: agent and bytecode come from different builds.
    #[error("the BPF object has no {0}: run `cargo xtask build` and rebuild the agent")]
    Incomplete(&'static str),
    /// A map could not be inspected.
    #[error("cannot inspect map {map}: {source}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What aya says.
        source: Box<aya::maps::MapError>,
    },
    /// A pinned map does not have the sizes that its generation stands for.
    #[error(
        "pinned map {map} has keys of {key} and values of {value} bytes: remove the instance (`sluice uninstall`) and start again"
    )]
    ForeignMap {
        /// Name of the map.
        map: &'static str,
        /// Its key size.
        key: u32,
        /// Its value size.
        value: u32,
    },
    /// A `bpf(2)` call failed.
    #[error("cannot {action} {object}: {source}")]
    Kernel {
        /// What was tried.
        action: &'static str,
        /// The map, program or hook on which it was tried.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program on a host veth could not be attached, detached or queried.
    #[error("cannot {action} {program} on interface {ifindex}: {source}")]
    Filter {
        /// Name of the program.
        program: &'static str,
        /// What was tried.
        action: &'static str,
        /// Index of the interface, in the agent's namespace.
        ifindex: u32,
        /// What netlink said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel programs' log could not be opened.
    #[error("cannot read the kernel programs' log: {0}")]
    Diagnostics(#[source] Box<aya_log::Error>),
    /// All slots are taken.
    #[error(
        "no slot left for another pod: an agent captures {max_pods} at most; have some of the mesh's pods run on \
         other nodes"
    )]
    NoSlot {
        /// How many pods the maps are made for.
        max_pods: u32,
    },
    /// The caller wants a slot that another pod has, that does not exist, or that differs from the
    /// pod's own.
    #[error("slot {slot} cannot be given to a pod: {reason}")]
    Slot {
        /// The slot.
        slot: u32,
        /// Why the pod cannot have the slot.
        reason: &'static str,
    },
    /// A pod cannot have this many workers.
    #[error("{0} workers: a pod needs 1 to {max}", max = sluice_abi::MAX_WORKERS)]
    Workers(usize),
    /// A pod's address cannot be captured.
    #[error("pod address {0} is loopback or unspecified: it is not one that a pod is reached at")]
    Address(IpAddr),
    /// A network's prefix is longer than its address.
    #[error("{address}/{length} is not a network: the prefix is longer than the address")]
    Network {
        /// The address.
        address: IpAddr,
        /// The prefix length.
        length: u8,
    },
    /// A pod wants more exemptions than it has room for; it keeps those it has.
    #[error("a pod may exempt {room} {what} at most: its opt-outs stay as they were")]
    TooManyExempt {
        /// What there are too many of: ports or networks.
        what: &'static str,
        /// How many of them a pod may have.
        room: u32,
    },
    /// The node's own network namespace could not be determined.
    #[error("cannot tell the node's network namespace: {0}")]
    Node(#[source] sluice_sys::Error),
    /// The pod is not enrolled.
    #[error("no pod is enrolled with network namespace cookie {0}")]
    NotEnrolled(u64),
}

impl Error {
    /// Returns a function that adds to an error what was tried on which path; costs nothing on
    /// success.
    pub(crate) fn path(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Path { action, path: path.into(), source }
    }

    /// Returns a function that adds to an error what was tried on which map, program or hook; costs
    /// nothing on success.
    pub(crate) fn kernel(
        action: &'static str,
        object: impl Into<String>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { action, object: object.into(), source }
    }
}
