//! The decision on one connection. Nothing here allocates.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use sluice_spiffe::SpiffeId;

use crate::{
    MtlsMode,
    matching::{Identity, Subject},
    mtls::PortModes,
    object::{Authorization, Rule},
};

/// A connection to be judged. IPv4 addresses may come in their IPv6-mapped form.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Identity of the client's certificate; `None` for plaintext.
    pub principal: Option<&'a SpiffeId>,
    /// Address of the client.
    pub source: IpAddr,
    /// Address of the application: the workload's own address and port, not a service's.
    pub destination: SocketAddr,
}

/// The decision on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a dropped verdict lets the connection through"]
pub enum Verdict {
    /// The connection may pass.
    Allow,
    /// The connection must not pass, for this reason.
    Deny(DenyReason),
}

/// Why a connection is refused. `Display` gives the text for the access log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenyReason {
    /// A DENY policy matched.
    #[error("explicitly denied by: {0}")]
    DeniedBy(Arc<str>),
    /// ALLOW policies exist, but none matched.
    #[error("allow policies exist, but none allowed")]
    NotAllowed,
    /// The port demands mutual TLS.
    #[error("plaintext refused: mutual TLS is STRICT")]
    PlaintextUnderStrict,
    /// Mutual TLS arrived at a port where it is disabled.
    #[error("mutual TLS refused: it is DISABLEd on this port")]
    MtlsDisabled,
    /// The policy is not known, because its source cannot be read and has no earlier version.
    #[error("policy unknown: {0} cannot be read and has no earlier version")]
    PolicyUnknown(Arc<str>),
}

/// The policies that apply to one workload. Cloning is cheap.
#[derive(Debug, Clone, Default)]
pub struct WorkloadPolicy(Arc<Bound>);

#[derive(Debug, Default)]
pub(crate) struct Bound {
    /// Origin of a source that could cover the workload, but cannot be read.
    pub(crate) unknown: Option<Arc<str>>,
    pub(crate) modes: PortModes,
    pub(crate) deny: Vec<Arc<Authorization>>,
    pub(crate) allow: Vec<Arc<Authorization>>,
}

// === impl WorkloadPolicy ===

impl WorkloadPolicy {
    pub(crate) fn new(bound: Bound) -> Self {
        Self(Arc::new(bound))
    }

    /// Returns which transport a port of the workload accepts.
    pub fn mode(&self, port: u16) -> MtlsMode {
        self.0.modes.mode(port)
    }

    /// Returns the names (`namespace/name`) of the authorization policies that are consulted, DENY before ALLOW.
    pub fn authorization_policies(&self) -> impl Iterator<Item = &str> {
        self.0.deny.iter().chain(&self.0.allow).map(|policy| policy.name.as_ref())
    }

    /// Judges a connection, in this order: unknown policy, transport, DENY, ALLOW. Without ALLOW policies, what was
    /// not denied may pass.
    pub fn decide(&self, connection: &Connection<'_>) -> Verdict {
        let bound = &*self.0;
        if let Some(origin) = &bound.unknown {
            return Verdict::Deny(DenyReason::PolicyUnknown(Arc::clone(origin)));
        }
        match (self.mode(connection.destination.port()), connection.principal) {
            (MtlsMode::Strict, None) => return Verdict::Deny(DenyReason::PlaintextUnderStrict),
            (MtlsMode::Disable, Some(_)) => return Verdict::Deny(DenyReason::MtlsDisabled),
            (MtlsMode::Strict, Some(_)) | (MtlsMode::Disable, None) | (MtlsMode::Permissive, _) => {
            }
        }
        let subject = Subject::of(connection);
        if let Some(policy) = bound.deny.iter().find(|policy| policy.matches(&subject)) {
            return Verdict::Deny(DenyReason::DeniedBy(Arc::clone(&policy.name)));
        }
        if bound.allow.is_empty() || bound.allow.iter().any(|policy| policy.matches(&subject)) {
            Verdict::Allow
        } else {
            Verdict::Deny(DenyReason::NotAllowed)
        }
    }
}

// === impl Subject ===

impl<'a> Subject<'a> {
    fn of(connection: &Connection<'a>) -> Self {
        Self {
            identity: connection.principal.map(Identity::of),
            source: connection.source.to_canonical(),
            destination: connection.destination.ip().to_canonical(),
            port: connection.destination.port(),
        }
    }
}

// === impl Authorization ===

impl Authorization {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.rules.iter().any(|rule| rule.matches(subject))
    }
}

// === impl Rule ===

impl Rule {
    fn matches(&self, subject: &Subject<'_>) -> bool {
        self.clauses
            .iter()
            .all(|clause| clause.alternatives.iter().any(|alternative| alternative.holds(subject)))
    }
}
