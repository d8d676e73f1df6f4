//! What the agent answers. Field names are a contract with scripts: add, do not rename.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `sluice status`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    pub(crate) node: String,
    pub(crate) instance: String,
    pub(crate) trust_domain: String,
    pub(crate) uptime_seconds: u64,
    pub(crate) open_connections: usize,
    pub(crate) source: Source,
    pub(crate) peers: Peers,
    /// Unknown (`None`) if the kernel could not be asked.
    #[serde(default)]
    pub(crate) unattributed: Option<Unattributed>,
    pub(crate) pods: Vec<Pod>,
    pub(crate) certificates: Vec<Certificate>,
    pub(crate) policies: Vec<Policy>,
}

/// Where the state of the mesh comes from, and what is wrong with it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Source {
    /// Counts the states that were taken over; 0 while nothing is known yet.
    pub(crate) version: u64,
    /// Seconds since the last state was taken over.
    pub(crate) age_seconds: Option<u64>,
    /// What is wrong and where; the last good state is in force instead.
    pub(crate) errors: Vec<String>,
    /// What is wrong in objects of a cluster other than policies, or what they keep out of the mesh.
    #[serde(default)]
    pub(crate) findings: Vec<String>,
    /// Whether the state in force was remembered from an earlier run, because the API server does not answer.
    #[serde(default)]
    pub(crate) is_provisional: bool,
    /// Whether Sluice is being uninstalled: every pod is to leave the mesh.
    #[serde(default)]
    pub(crate) is_leaving: bool,
    /// Seconds for which the API server could not be followed, at least in part.
    #[serde(default)]
    pub(crate) lag_seconds: u64,
}

/// The kernel's table of destinations that are reached through the mesh only.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Peers {
    pub(crate) known: usize,
    pub(crate) capacity: usize,
    /// Whether every destination is captured because the table overflowed.
    pub(crate) capture_all: bool,
}

/// What the kernel has dropped in enrolled namespaces without knowing for which pod.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Unattributed {
    /// Inbound connections to an address that no pod of this node has in the mesh.
    pub(crate) inbound_dropped: u64,
    /// Packets from a pod whose interface was not known.
    pub(crate) guard_drops: u64,
}

/// A pod of this node.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) identity: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) state: Capture,
    /// Why the pod is not captured, or not fully.
    pub(crate) reason: Option<String>,
    /// Connections from before its enrolment, which were ended so that they come back encrypted.
    pub(crate) connections_ended_at_enrolment: usize,
    /// Whether the pod ran before it was captured; not remembered across a restart of the agent.
    #[serde(default)]
    pub(crate) ran_before_capture: bool,
    pub(crate) counters: Counters,
}

/// Whether a pod is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Capture {
    /// As the kernel said for this answer.
    Captured,
    Impaired,
    Refused,
    /// Not known, or not to this version.
    #[serde(other)]
    Unknown,
}

/// What was counted for a pod since its enrolment (kernel) or the agent's start (agent).
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counters {
    /// Kernel: outbound connections handed to the agent.
    pub(crate) captured: u64,
    /// Kernel: outbound connections to destinations that the mesh does not know.
    pub(crate) direct: u64,
    /// Kernel: outbound connections refused.
    pub(crate) denied: u64,
    /// Kernel: inbound connections handed to the agent.
    pub(crate) inbound: u64,
    /// Kernel: inbound connections refused for want of an agent.
    pub(crate) inbound_dropped: u64,
    /// Kernel: packets that tried to reach the mesh past the agent.
    pub(crate) guard_drops: u64,
    /// Kernel: UDP packets to pods of the mesh, which are not encrypted.
    pub(crate) udp: u64,
    /// Kernel: failures inside the hooks, each of which refused a connection.
    pub(crate) errors: u64,
    /// Kernel: connections, in and out, that an opt-out keeps out of the mesh.
    #[serde(default)]
    pub(crate) bypassed: u64,
    /// Kernel: connections of the kubelet to ports that are declared for probes.
    #[serde(default)]
    pub(crate) probes: u64,
    /// Agent: captured connections that left over mutual TLS.
    pub(crate) outbound_mtls: u64,
    /// Agent: captured connections that left as plaintext.
    pub(crate) outbound_plaintext: u64,
    /// Agent: captured connections that were refused.
    pub(crate) outbound_refused: u64,
    /// Agent: connections let in over mutual TLS.
    pub(crate) inbound_mtls: u64,
    /// Agent: connections let in as plaintext.
    pub(crate) inbound_plaintext: u64,
    /// Agent: inbound connections refused.
    pub(crate) inbound_refused: u64,
}

/// A certificate of a local identity.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Certificate {
    pub(crate) identity: String,
    pub(crate) issuer: Option<String>,
    pub(crate) serial: Option<String>,
    /// Beginning of validity, RFC 3339.
    #[serde(default)]
    pub(crate) not_before: Option<String>,
    /// End of validity, RFC 3339.
    pub(crate) not_after: Option<String>,
    /// When renewal is next tried, RFC 3339.
    pub(crate) next_renewal: Option<String>,
    /// Why the last request failed.
    pub(crate) last_error: Option<String>,
    /// Whether it failed because the CA refuses.
    #[serde(default)]
    pub(crate) is_refused: bool,
}

/// `sluice certs`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Certs {
    pub(crate) certificates: Vec<Certificate>,
    /// The roots that are believed, and the revocation lists.
    pub(crate) trust: Vec<TrustEntry>,
    /// Entries in the list of denied identities.
    pub(crate) denied: usize,
    /// What has expired, or will before it is likely to be replaced.
    pub(crate) warnings: Vec<String>,
    /// Those of the warnings that are not about the certificate of a local identity.
    #[serde(default)]
    pub(crate) trust_warnings: Vec<String>,
    /// What is wrong with trust files, and what is in force instead.
    pub(crate) faults: Vec<String>,
}

/// A root, or a revocation list.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TrustEntry {
    /// `root` or `crl`.
    pub(crate) kind: String,
    /// The root's name, or that of the list's issuer.
    pub(crate) of: String,
    pub(crate) serial: Option<String>,
    /// RFC 3339; of a list, when the next one is due.
    pub(crate) not_after: Option<String>,
}

/// A policy that the node knows.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Policy {
    pub(crate) kind: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// `metadata.generation` of the newest version that the node has seen, where there is one.
    #[serde(default)]
    pub(crate) version: Option<i64>,
    #[serde(default)]
    pub(crate) state: PolicyState,
    /// What part of the policy cannot be enforced, and what that means.
    pub(crate) findings: Vec<String>,
}

/// What became of a policy's newest version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PolicyState {
    /// Enforced as written.
    Accepted,
    /// Part of it is enforced more strictly than written, or has no effect.
    Narrowed,
    /// Not in force; the findings say what is instead.
    Refused,
    /// Not known to this version.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Facts about a node, for `sluice check`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct NodeFacts {
    pub(crate) node: String,
    /// The agent's version.
    pub(crate) version: String,
    /// The node's clock, in milliseconds since 1970.
    pub(crate) now_ms: u64,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// Whether the kernel describes its types (BTF).
    pub(crate) btf: bool,
    /// The cgroup that the hooks are attached to.
    pub(crate) cgroup: String,
    /// The programs that are loaded, each with where it is attached.
    pub(crate) hooks: Vec<String>,
    /// Hooks that the kernel does not have in effect.
    pub(crate) hooks_missing: Vec<String>,
    /// What the kernel lacks, and what is done instead.
    pub(crate) kernel_lacks: Vec<String>,
}

/// `sluice flows`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Flows(pub(crate) Vec<Flow>);

/// `sluice policy`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Policies(pub(crate) Vec<Policy>);

/// One line of `sluice flows`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Flow {
    pub(crate) direction: String,
    /// `mtls`, `local` (within this agent, both identities proved by mutual TLS) or `plaintext`.
    pub(crate) transport: String,
    pub(crate) pod: String,
    pub(crate) source: String,
    pub(crate) source_identity: Option<String>,
    /// The address that the client asked for.
    pub(crate) requested: String,
    pub(crate) destination: String,
    pub(crate) destination_identity: Option<String>,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) age_seconds: f64,
}

// === impl Capture ===

impl Capture {
    pub(crate) const ALL: [Self; 4] =
        [Self::Captured, Self::Impaired, Self::Refused, Self::Unknown];
}

impl fmt::Display for Capture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Captured => "captured",
            Self::Impaired => "impaired",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        })
    }
}

// === impl PolicyState ===

impl fmt::Display for PolicyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Accepted => "accepted",
            Self::Narrowed => "narrowed",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_written_as_they_are_shown_and_later_ones_are_unknown() {
        for state in Capture::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
        for state in [PolicyState::Accepted, PolicyState::Narrowed, PolicyState::Refused] {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{state}\""));
        }
        assert_eq!(serde_json::from_str::<Capture>("\"new\"").unwrap(), Capture::Unknown);
        assert_eq!(serde_json::from_str::<PolicyState>("\"new\"").unwrap(), PolicyState::Unknown);
    }
}
