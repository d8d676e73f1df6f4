//! How a captured connection ended, in the words of Istio's metrics.

use sluice_mesh::Snapshot;

use super::Failure;
use crate::{
    access,
    live::Listed,
    series::{Ending, Flags},
};

impl Ending for Failure {
    fn flags(&self) -> Flags {
        match self {
            Self::NoCertificate { .. } => Flags::IdentityError,
            Self::NoEndpoint { .. }
            | Self::Disputed(_)
            | Self::Connect { .. }
            | Self::AgentTimeout(_)
            | Self::Timeout(_)
            | Self::Shortage(_) => Flags::Connect,
            Self::Session(broken) => Flags::of_broken(broken),
            Self::Untrusted(_) => Flags::CertRevoked,
            Self::Ended(reason) => Flags::of_reset(*reason),
            Self::Application(_) => Flags::None,
        }
    }
}

/// Logs a connection that is over.
pub(super) fn complete(snapshot: &Snapshot, live: &Listed, result: Result<(), Failure>) {
    match result {
        Ok(()) => access::connection_complete(snapshot, live, None),
        Err(failure) => access::connection_complete(snapshot, live, Some(&failure)),
    }
}
