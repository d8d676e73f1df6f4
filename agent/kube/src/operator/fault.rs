//! Why a cluster could not be asked, and what to do about it.

use kube::client::AuthError;

use crate::client::innermost;

/// Why an operator's question has no answer. Each says what to do next.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// Nothing says where the cluster is.
    #[error(
        "there is no kubeconfig: pass --kubeconfig FILE, or set KUBECONFIG; on a node of the mesh, run as root where \
         its agent listens (--socket)"
    )]
    NoKubeconfig,
    /// The kubeconfig is not usable.
    #[error(
        "{place} cannot be used: {reason}; try `kubectl --kubeconfig FILE version` with the same file"
    )]
    Kubeconfig {
        /// The file, or where it was looked for.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The kubeconfig has no such context.
    #[error("{place} has no context {name:?}: pass --context with one of {known}")]
    NoContext {
        /// The file, or where it was looked for.
        place: String,
        /// The context asked for; empty when none was and the file names no current one.
        name: String,
        /// The contexts that it has.
        known: String,
    },
    /// Nobody answers, or somebody other than the API server.
    #[error(
        "the API server {server} does not answer: {reason}; check the address and the CA in the kubeconfig (or choose \
         another with --kubeconfig or --context), and that this machine reaches it"
    )]
    Unreachable {
        /// The API server's URL.
        server: String,
        /// What went wrong.
        reason: String,
    },
    /// The credentials are not accepted, or cannot be obtained.
    #[error(
        "the API server {server} does not accept the credentials of the kubeconfig: {reason}; log in again, or renew \
         them"
    )]
    Credentials {
        /// The API server's URL.
        server: String,
        /// What was said.
        reason: String,
    },
    /// RBAC forbids it.
    #[error(
        "not permitted: {reason}; it needs {needs}: have an administrator bind you the Role that \
         the chart made for operators (`kubectl get role -A -l app.kubernetes.io/component=operator`)"
    )]
    Forbidden {
        /// What RBAC must grant.
        needs: String,
        /// What the API server said.
        reason: String,
    },
    /// There is no agent in the namespace.
    #[error("there is no Sluice in the namespace {namespace:?}: {hint}")]
    NotInstalled {
        /// The namespace.
        namespace: String,
        /// What to do.
        hint: String,
    },
    /// No agent runs on a node that was named.
    #[error("no agent is on the node {node:?}: agents are on {known}")]
    NoAgentOn {
        /// The node.
        node: String,
        /// Nodes with agents.
        known: String,
    },
    /// The command was not run, or did not answer.
    #[error("{pod}: {reason}")]
    Exec {
        /// The pod.
        pod: String,
        /// What went wrong, and what to do.
        reason: String,
    },
    /// Something else.
    #[error("{what}: {reason}")]
    Refused {
        /// What was tried.
        what: String,
        /// What the API server said.
        reason: String,
    },
}

// === impl AskError ===

impl AskError {
    /// Describes an error. `what` was tried at `server`; `needs` is what RBAC must grant for it.
    pub(super) fn new(server: &str, what: &str, needs: &str, error: &kube::Error) -> Self {
        let server = server.to_owned();
        if let kube::Error::Api(status) = error {
            let reason = status.message.clone();
            return match status.code {
                401 => Self::Credentials { server, reason },
                403 => Self::Forbidden { needs: needs.to_owned(), reason },
                _ => Self::Refused { what: what.to_owned(), reason },
            };
        }
        if let kube::Error::SerdeError(error) = error {
            let reason = format!(
                "the answer is not what an API server says ({error}): check the address in the kubeconfig"
            );
            return Self::Refused { what: what.to_owned(), reason };
        }
        // What a credential plugin said may be wrapped as a failure of the connection.
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(inner) = cause {
            if let Some(auth) = inner.downcast_ref::<AuthError>() {
                return Self::Credentials { server, reason: innermost(auth) };
            }
            cause = inner.source();
        }
        Self::Unreachable { server, reason: innermost(error) }
    }
}
