//! How an inbound connection ended: for the log, for Istio's metrics, and for its session.

use std::{io, net::SocketAddr};

use sluice_policy::DenyReason;
use sluice_tls::VerifyError;
use sluice_wire::ResetReason;

use crate::{
    descriptors::Shortage,
    relay::{Outcome, Resetter},
    series::{Ending, Flags},
    session::Broken,
};

/// Why an inbound connection was refused or ended before its time.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Denied(#[from] DenyReason),
    #[error("the client's certificate is not accepted any more: {0}")]
    Untrusted(VerifyError),
    #[error("plaintext from a pod of the mesh")]
    PlaintextFromMesh,
    #[error("the client opened a stream for {claimed}, but its own address is {actual}")]
    ForeignClient { claimed: SocketAddr, actual: SocketAddr },
    #[error("the application on {address} does not answer: {source}")]
    Unreachable { address: SocketAddr, source: io::Error },
    #[error("no socket to deliver to {address}: {source}")]
    NoSocket { address: SocketAddr, source: io::Error },
    #[error(transparent)]
    Shortage(#[from] Shortage),
    #[error("the application's connection: {0}")]
    Application(io::Error),
    #[error(transparent)]
    Session(#[from] Broken),
    #[error("{0}")]
    Ended(ResetReason),
}

impl Ending for Failure {
    fn flags(&self) -> Flags {
        match self {
            Self::Denied(_) | Self::PlaintextFromMesh | Self::ForeignClient { .. } => Flags::Deny,
            Self::Untrusted(_) => Flags::CertRevoked,
            Self::Unreachable { .. } | Self::NoSocket { .. } | Self::Shortage(_) => Flags::Connect,
            Self::Session(broken) => Flags::of_broken(broken),
            Self::Ended(reason) => Flags::of_reset(*reason),
            Self::Application(_) => Flags::None,
        }
    }
}

/// How a session goes that can carry no other stream.
pub(super) enum Leaving {
    /// Its stream is torn down.
    Reset(ResetReason),
    /// Its stream has had our last word.
    Close,
    /// The peer knows, or cannot be told.
    Drop,
}

/// What an outcome means for the session, as [`Arrived::mesh_stream`], and for the log.
pub(super) fn ended(outcome: Outcome) -> (Result<(), Leaving>, Option<Failure>) {
    match outcome {
        Outcome::Clean => (Ok(()), None),
        Outcome::Reset(Resetter::Own(error)) => (Ok(()), Some(Failure::Application(error))),
        Outcome::Reset(Resetter::Peer) => (Ok(()), Some(Failure::Ended(ResetReason::Application))),
        Outcome::Application(error) => (Err(Leaving::Close), Some(Failure::Application(error))),
        Outcome::Peer(reason) => (Err(Leaving::Drop), Some(Failure::Ended(reason))),
        Outcome::Broken(broken) => (Err(Leaving::Drop), Some(broken.into())),
        Outcome::Unseen => (Err(Leaving::Drop), Some(Broken::Closed.into())),
        Outcome::Cut(reason) => (Err(Leaving::Reset(reason)), Some(Failure::Ended(reason))),
    }
}
