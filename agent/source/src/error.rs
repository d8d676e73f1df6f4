//! What can be wrong with a file: which file, where in it, and what to do.

use std::{net::IpAddr, path::PathBuf};

use sluice_mesh::BuildError;
use sluice_policy::{ObjectId, ReadError};

/// What is wrong with a file. Each message names the file, and the line where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file or directory cannot be read.
    #[error("{}: cannot be read: {reason}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        reason: String,
    },
    /// Not YAML, or not the expected shape: an unknown field, a list where a text belongs.
    #[error("{}:{line}:{column}: {message}: correct or remove it", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What the YAML reader says; it names the field.
        message: String,
    },
    /// The shape is right, but a value is not.
    #[error("{}:{line}: {field}: {problem}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The field, such as `pods[2].addresses`.
        field: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A policy is not understood.
    #[error(transparent)]
    Policy(#[from] ReadError),
    /// The file defines a policy that another file defines already.
    #[error("{}: {object} is already defined in {}: remove it from one of them", file.display(), other.display())]
    ClaimedElsewhere {
        /// The file that came later.
        file: PathBuf,
        /// The policy.
        object: ObjectId,
        /// The file that has it already.
        other: PathBuf,
    },
    /// The file holds nothing, as happens while it is written.
    #[error("{}: is empty: write {{}} for a mesh without pods, or delete a file whose policies are to go", file.display())]
    Emptied {
        /// The file.
        file: PathBuf,
    },
    /// The state contradicts itself in a way that only the whole shows.
    #[error("{}: {error}", file.display())]
    Contradiction {
        /// The file.
        file: PathBuf,
        /// What contradicts what.
        error: BuildError,
    },
}

/// What can be wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Not a DNS label.
    #[error("{0:?} is not a DNS label: lower-case letters, digits and '-', at most 63")]
    NotALabel(String),
    /// Not a DNS subdomain.
    #[error(
        "{0:?} is not a DNS name: labels of lower-case letters, digits and '-', joined by '.', at most 253"
    )]
    NotASubdomain(String),
    /// Neither the file nor the environment says which node this is.
    #[error("name this node here, or in the variable SLUICE_NODE")]
    NoNode,
    /// A name that cannot be a directory's.
    #[error("{0:?} cannot name a directory: letters, digits, '-', '_' and '.', at most 63")]
    NotAnInstance(String),
    /// Not a trust domain.
    #[error("{0}")]
    NotATrustDomain(sluice_spiffe::IdError),
    /// A trust domain whose roots are given elsewhere.
    #[error(
        "the roots of trust domain {0} are given already: each has one entry, the mesh's own has trust.roots"
    )]
    TrustDomainTaken(sluice_spiffe::TrustDomain),
    /// A policy for stale revocation lists that does not exist.
    #[error("{0:?} is not a policy: keepLastGood and refuse are")]
    CrlPolicy(String),
    /// Not an address with a port.
    #[error("{0:?} is not an address with a port, such as 127.0.0.1:15020")]
    NotASocketAddress(String),
    /// Two entries of one name.
    #[error("{name} is already listed on line {first}: remove one of them")]
    Twice {
        /// The name.
        name: String,
        /// Line of the first.
        first: u64,
    },
    /// An address that is already taken.
    #[error("{address} already belongs to {owner} (line {first}): give each its own")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has the address.
        owner: String,
        /// Line that gives it to them.
        first: u64,
    },
    /// No pod or service can have this address.
    #[error("{0} cannot be reached from elsewhere: write a unicast address of the pod network")]
    NotUnicast(IpAddr),
    /// A list that must not be empty.
    #[error("empty: list at least one")]
    Empty,
    /// Port 0.
    #[error("0 is not a port: 1 to 65535")]
    PortZero,
    /// A path that depends on where the agent was started.
    #[error("{} is relative: write the whole path", .0.display())]
    RelativePath(PathBuf),
    /// A path that a Unix socket cannot have.
    #[error("{} is longer than the 107 bytes that a Unix socket's path may have", .0.display())]
    SocketPathTooLong(PathBuf),
    /// Too few or too many workers.
    #[error("{0} is not a number of workers: 1 to 8")]
    Workers(usize),
    /// A mode of `ca` that does not exist.
    #[error("{0:?} is not a mode: embedded, pem, istio and spire are")]
    CaMode(String),
    /// A field of `ca` that its mode needs is missing.
    #[error("missing: {0}")]
    CaNeeds(&'static str),
    /// Not the address of a CA.
    #[error("{0:?} is not the address of a CA: write https://host:port")]
    CaAddress(String),
    /// A name that cannot be sent.
    #[error("{0:?} is empty or not visible ASCII: write the name without spaces")]
    NotVisibleAscii(String),
    /// Not a lifetime of certificates, or one that is too short or too long.
    #[error("{0:?} is not a lifetime: write 60s to 8784h, such as 90m or 24h")]
    Lifetime(String),
    /// A field of `ca` that its mode does not have.
    #[error("ca.mode {0} has no such field: remove it")]
    ForeignCaField(String),
    /// Nothing says where the state of the mesh comes from.
    #[error("missing: set mesh (a file) or kubernetes (a cluster)")]
    NoSource,
    /// Both a file and a cluster.
    #[error("kubernetes is set too: remove one of them")]
    TwoSources,
    /// A directory of policies beside a cluster.
    #[error("the cluster's own policies are enforced: remove it, and apply these to the cluster")]
    PoliciesOfCluster,
    /// Not the name of a label.
    #[error("{0:?} is not the name of a label, such as istio.io/dataplane-mode")]
    NotALabelName(String),
}

impl FileError {
    /// Returns the line at fault, if there is one.
    pub fn line(&self) -> Option<u64> {
        match self {
            Self::Syntax { line, .. } | Self::Content { line, .. } => Some(*line),
            Self::Policy(error) => Some(error.place().line),
            Self::Unreadable { .. }
            | Self::ClaimedElsewhere { .. }
            | Self::Emptied { .. }
            | Self::Contradiction { .. } => None,
        }
    }
}
