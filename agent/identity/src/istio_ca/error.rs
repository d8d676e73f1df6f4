//! What can go wrong between the agent and the CA, in words for the operator.

use std::{io, path::PathBuf};

use sluice_spiffe::SpiffeId;
use sluice_tls::{IssueError, RootError, ServerRootsError};
use tonic::{Code, Status};

use crate::words::{one_line, with_causes};

/// Why the CA did not answer with certificates.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The configured address cannot be that of a CA.
    #[error("{address:?} is not the address of a CA: write https://host:port ({reason})")]
    Address {
        /// What was configured.
        address: String,
        /// What the library says.
        reason: String,
    },
    /// The cluster's name cannot be sent.
    #[error("the cluster's name {0:?} cannot be sent in a header: use visible ASCII")]
    ClusterId(String),
    /// A file that is needed cannot be read.
    #[error("cannot read the {what} {}: {source}", path.display())]
    File {
        /// What the file holds.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The token's file holds no token.
    #[error("{} holds no token: it should be one line, as Kubernetes projects it", path.display())]
    Token {
        /// The file.
        path: PathBuf,
    },
    /// The server's roots are not PEM.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: RootError,
    },
    /// The server's roots cannot be used.
    #[error("{}: {source}", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: ServerRootsError,
    },
    /// The CA refuses.
    #[error("{0}")]
    Refused(String),
    /// The CA cannot answer, or the connection failed.
    #[error("{0}")]
    Failed(String),
}

// === impl AskError ===

impl AskError {
    pub(super) fn failed(status: &Status) -> Self {
        Self::Failed(format!("{:?}: {}", status.code(), with_causes(status.message(), status)))
    }

    /// Converts the error into the one that the store knows.
    pub(super) fn about(self, id: &SpiffeId) -> IssueError {
        let id = id.clone();
        if let Self::Refused(rule) = self {
            return IssueError::Refused { id, rule };
        }
        IssueError::Unreachable { id, source: self.into() }
    }
}

/// Returns the CA's words if `status` is its decision about this request.
pub(super) fn refusal(status: &Status) -> Option<String> {
    let decided = matches!(
        status.code(),
        Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument
    );
    decided.then(|| format!("{} ({:?})", one_line(status.message()), status.code()))
}
