//! What is wrong with an object, or what it does that its author may not expect.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sluice_policy::Severity;

/// The kind, namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Its kind, such as `Pod`.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A remark on one object. No finding is about access that was widened.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object in question.
    pub object: ObjectName,
    /// The field or annotation in question.
    pub field: String,
    /// How much it matters.
    pub severity: Severity,
    /// What it means, in one sentence.
    pub meaning: Meaning,
}

/// The meanings that a finding can have.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error, Serialize, Deserialize,
)]
#[non_exhaustive]
pub enum Meaning {
    /// An item of an annotation's list is no port.
    #[error("{0:?} is not a port from 1 to 65535, so it exempts nothing: correct or remove it")]
    NotAPort(String),
    /// An item of an annotation's list is no network.
    #[error(
        "{0:?} is not a network such as 10.0.0.0/8, so it exempts nothing: correct or remove it"
    )]
    NotANetwork(String),
    /// Every destination is exempt.
    #[error("{0} exempts every destination of the pod from the mesh")]
    ExemptsEverything(String),
    /// A probe names a port that its container does not have.
    #[error(
        "no port of the container is named {0:?}, so the kubelet cannot probe it: correct the name"
    )]
    UnknownProbePort(String),
    /// No identity can be made of the pod's namespace and service account.
    #[error("its namespace and service account make no SPIFFE ID ({0}), so it has no certificate")]
    NoIdentity(String),
    /// The pod is labelled for the mesh, and has a sidecar.
    #[error(
        "it has an Istio sidecar, so the mesh leaves it alone whatever its labels say: restart it without one"
    )]
    Sidecar,
    /// Two live pods claim one address.
    #[error(
        "{address} is claimed by {claimants}: nobody is let through to or from it until one of them is gone"
    )]
    AddressClash {
        /// The address.
        address: IpAddr,
        /// The pods that claim it.
        claimants: String,
    },
    /// A service claims an address that something else has.
    #[error(
        "{address} belongs to {owner} already, so the mesh does not take this service there: give it its own"
    )]
    ServiceAddressTaken {
        /// The address.
        address: IpAddr,
        /// Who has the address.
        owner: String,
    },
    /// A service claims a port of a load balancer's address that something else has.
    #[error(
        "{address} belongs to {owner} already, so the mesh does not take this service there: give it another port \
         or address"
    )]
    ServicePortTaken {
        /// The address and port.
        address: SocketAddr,
        /// Who has it.
        owner: String,
    },
    /// The policy cannot be read, and an earlier version is in force.
    #[error("{0} (its last good version stays in force)")]
    PolicyKept(String),
    /// The policy cannot be read, and nothing of it is known.
    #[error("{0} (no good version is known, so connections that it could be about are denied)")]
    PolicyDenies(String),
    /// The rule's TLS mode is not one that we enforce.
    #[error(
        "TLS mode {0:?} is not enforced here, only DISABLE and SIMPLE are: the mesh stays in use"
    )]
    UnknownTlsMode(String),
    /// The rule is for some clients only.
    #[error(
        "a rule for some clients only is not enforced here: the mesh stays in use for this host"
    )]
    SomeClients,
    /// The rule stands in a namespace that does not own the host.
    #[error(
        "only rules in the service's own namespace or {0} decide how it is reached: move the rule there"
    )]
    ForeignRule(String),
    /// The host is no service of the cluster.
    #[error(
        "{0:?} is no service here (write its name, or name.namespace.svc.cluster.local), so the rule has no effect"
    )]
    UnknownHost(String),
    /// Rules about one host disagree.
    #[error("rules about {0} disagree about TLS, so the mesh stays in use: keep one of them")]
    RulesDisagree(String),
    /// A rule is in force as written: a host is reached without the mesh.
    #[error(
        "{0} is reached without the mesh: its connections are encrypted only if the application does it"
    )]
    ReachedDirectly(String),
}

// === impl Meaning ===

impl Meaning {
    pub(crate) fn severity(&self) -> Severity {
        let is_as_written = matches!(self, Self::ExemptsEverything(_) | Self::ReachedDirectly(_));
        if is_as_written { Severity::Notice } else { Severity::Warning }
    }
}

// === impl ObjectName ===

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

// === impl Finding ===

impl Finding {
    pub(crate) fn new(object: ObjectName, field: impl Into<String>, meaning: Meaning) -> Self {
        Self { object, field: field.into(), severity: meaning.severity(), meaning }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, field, severity: _, meaning } = self;
        write!(f, "{object}: {field}: {meaning}")
    }
}
