//! Why a certificate is not issued: one rule each, with its name.

use sluice_spiffe::{IdError, SpiffeId, TrustDomain};
use sluice_tls::ca::RequestError;
use tonic::{Code, Status};

/// A rule that a request breaks, or what keeps the controller from judging it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The caller does not say who it is.
    #[error("send one bearer token in the metadata field `authorization`")]
    NoToken,
    /// The token proves nothing.
    #[error("the token is not that of a node's agent: {reason}")]
    BadToken {
        /// What is wrong with it; never the token itself.
        reason: String,
    },
    /// It cannot be found out who calls.
    #[error("callers cannot be verified now, try again later: {reason}")]
    CallersUnknown {
        /// Why this is not known.
        reason: String,
    },
    /// The caller asks more often than it is granted.
    #[error("{caller} asks too often: at most {per_second} certificates a second")]
    TooOften {
        /// Who asks.
        caller: String,
        /// The rate that is granted in the long run.
        per_second: u32,
    },
    /// Too many tokens that proved nothing came from the caller's address.
    #[error(
        "too many tokens that proved nothing came from {address}: at most {per_second} a second are judged"
    )]
    Flooded {
        /// The address.
        address: String,
        /// The rate that is granted in the long run.
        per_second: u32,
    },
    /// The request does not say whom the certificate is for.
    #[error(
        "name the pod's identity in the metadata field `ImpersonatedIdentity`: agents have none of their own"
    )]
    NoIdentity,
    /// The requested identity is not a SPIFFE ID.
    #[error("the identity is not a SPIFFE ID: {0}")]
    NotSpiffe(#[source] IdError),
    /// The identity is longer than any SPIFFE ID.
    #[error("the identity is not a SPIFFE ID: {0} bytes are more than the 2048 that SPIFFE allows")]
    TooLong(usize),
    /// The identity is of another trust domain, or names no workload.
    #[error("{id} is not a workload of trust domain {domain}")]
    NotOurs {
        /// Whom the certificate was to name.
        id: SpiffeId,
        /// The trust domain that certificates are issued for.
        domain: TrustDomain,
    },
    /// The lifetime is too short to be renewed in time.
    #[error("a certificate lives at least 60 s, not {0} s; 0 asks for the usual lifetime")]
    TooShort(i64),
    /// The signing request cannot be signed.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The signing request asks for another name.
    #[error("the request must hold {id} as its only name, or none")]
    OtherName {
        /// Whom the certificate was to name.
        id: SpiffeId,
    },
    /// Pods of this identity run on other nodes only.
    #[error("no pod of {id} runs on node {node} now, only on others")]
    Elsewhere {
        /// Whom the certificate was to name.
        id: SpiffeId,
        /// The caller's node.
        node: String,
    },
    /// No pod of this identity runs anywhere.
    #[error("no pod of {id} runs on node {node} now, nor on any other")]
    Nowhere {
        /// Whom the certificate was to name.
        id: SpiffeId,
        /// The caller's node.
        node: String,
    },
    /// Nothing is known to run on the caller's node.
    #[error("no pod of {id} runs on node {node} now: no pod is known there at all")]
    UnknownNode {
        /// Whom the certificate was to name.
        id: SpiffeId,
        /// The caller's node.
        node: String,
    },
    /// It is not known which pods run where.
    #[error("it is not known which pods run where, try again later: {reason}")]
    PlacementUnknown {
        /// Why this is not known.
        reason: String,
    },
    /// The authority cannot issue any more.
    #[error("the CA's own certificate has expired: its operator must renew it")]
    Expired,
    /// The authority would not, or could not, sign.
    #[error("the CA cannot sign now: {reason}")]
    Signing {
        /// What the authority said.
        reason: String,
    },
}

// === impl Refusal ===

impl Refusal {
    /// Returns the rule's name, for logs and for programs that read the answer.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::NoToken | Self::BadToken { .. } => "caller-token",
            Self::CallersUnknown { .. } => "caller-known",
            Self::TooOften { .. } => "caller-rate",
            Self::Flooded { .. } => "address-rate",
            Self::NoIdentity => "identity-named",
            Self::NotSpiffe(_) | Self::TooLong(_) => "identity-spiffe",
            Self::NotOurs { .. } => "identity-trust-domain",
            Self::TooShort(_) => "lifetime-minimum",
            Self::Request(RequestError::Key { .. }) => "request-key",
            Self::Request(RequestError::Signature) => "request-signature",
            Self::Request(_) => "request-form",
            Self::OtherName { .. } => "request-names",
            Self::Elsewhere { .. } | Self::Nowhere { .. } | Self::UnknownNode { .. } => {
                "pod-on-callers-node"
            }
            Self::PlacementUnknown { .. } => "pods-known",
            Self::Expired => "authority-valid",
            Self::Signing { .. } => "authority-signs",
        }
    }

    /// Returns the gRPC status code. It is `UNAVAILABLE` or `RESOURCE_EXHAUSTED` only if the answer may be another when
    /// the same is asked again.
    pub fn code(&self) -> Code {
        match self {
            Self::NoToken | Self::BadToken { .. } => Code::Unauthenticated,
            Self::TooOften { .. } | Self::Flooded { .. } => Code::ResourceExhausted,
            Self::NoIdentity
            | Self::NotSpiffe(_)
            | Self::TooLong(_)
            | Self::TooShort(_)
            | Self::Request(_)
            | Self::OtherName { .. } => Code::InvalidArgument,
            Self::NotOurs { .. }
            | Self::Elsewhere { .. }
            | Self::Nowhere { .. }
            | Self::UnknownNode { .. } => Code::PermissionDenied,
            Self::CallersUnknown { .. }
            | Self::PlacementUnknown { .. }
            | Self::Expired
            | Self::Signing { .. } => Code::Unavailable,
        }
    }

    pub(crate) fn status(&self) -> Status {
        Status::new(self.code(), format!("{}: {self}", self.rule()))
    }
}
