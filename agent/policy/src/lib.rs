//! Istio's security policies at L4: read, compiled and evaluated without I/O.
#![forbid(unsafe_code)]

use sluice_spiffe::SpiffeId;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// PLACEHOLDER of the contract; to be replaced by real modules with this API.
#[derive(Debug, Clone, Default)]
pub struct PolicySet {}
/// What applies to one workload.
#[derive(Debug, Clone, Default)]
pub struct WorkloadPolicy {}
/// Which transport a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MtlsMode {
    /// Only mutual TLS.
    Strict,
    /// Mutual TLS and plaintext.
    Permissive,
    /// Only plaintext.
    Disable,
}
/// A connection to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// Identity of the client's certificate; `None` for plaintext.
    pub principal: Option<&'a SpiffeId>,
    /// Address of the client.
    pub source: IpAddr,
    /// Address of the application.
    pub destination: SocketAddr,
}
/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// May pass.
    Allow,
    /// Must not, and why.
    Deny(DenyReason),
}
/// Why a connection is refused; `Display` gives the sentence of the access log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DenyReason {
    /// A DENY policy matched.
    #[error("explicitly denied by: {0}")]
    DeniedBy(Arc<str>),
    /// ALLOW policies exist, none matched.
    #[error("allow policies exist, but none allowed")]
    NotAllowed,
    /// The port demands mutual TLS.
    #[error("plaintext refused: mutual TLS is STRICT")]
    PlaintextUnderStrict,
    /// Mutual TLS arrived at a port where it is disabled.
    #[error("mutual TLS refused: it is DISABLEd on this port")]
    MtlsDisabled,
}
impl PolicySet {
    /// The policies of one workload.
    pub fn for_workload(
        &self,
        _namespace: &str,
        _labels: &BTreeMap<String, String>,
    ) -> WorkloadPolicy {
        WorkloadPolicy {}
    }
}
impl WorkloadPolicy {
    /// Transport of a port.
    pub fn mode(&self, _port: u16) -> MtlsMode {
        MtlsMode::Permissive
    }
    /// Judges a connection.
    pub fn decide(&self, _connection: &Connection<'_>) -> Verdict {
        Verdict::Allow
    }
}
