//! The connection to the API server.

use std::{
    future::Future,
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// How long a request may take, unless it is a watch.
const WITHIN: Duration = Duration::from_secs(10);

/// Why there are no usable credentials for the API server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The kubeconfig file is not usable.
    #[error("{}: {reason}: correct `kubeconfig` in the configuration, or remove it to use the pod's service account", file.display())]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no service account: this is no pod, or one without.
    #[error(
        "no service account ({0}): run in a pod with one, or set `kubeconfig` in the configuration"
    )]
    NoAccount(String),
    /// The credentials are not usable.
    #[error("the credentials for the API server cannot be used: {0}")]
    Credentials(String),
}

/// Reads the credentials. The client connects when it is first used.
pub(crate) async fn open(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let client = match kubeconfig {
        Some(file) => {
            let refuse = |error: kube::config::KubeconfigError| ConnectError::Kubeconfig {
                file: file.to_owned(),
                reason: error.to_string(),
            };
            let kubeconfig = Kubeconfig::read_from(file).map_err(refuse)?;
            let options = KubeConfigOptions::default();
            Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(refuse)?
        }
        None => Config::incluster().map_err(|error| ConnectError::NoAccount(error.to_string()))?,
    };
    Client::try_from(client).map_err(|error| ConnectError::Credentials(error.to_string()))
}

/// A connection to the API server, for callers that do not follow a whole cluster; cheap to clone.
#[derive(Clone)]
pub struct ApiServer(pub(crate) Client);

/// A request that the API server did not carry out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct ApiFault {
    what: String,
    reason: String,
    passes: bool,
}

// === impl ApiServer ===

impl ApiServer {
    /// Reads the credentials of a kubeconfig file, or of our own pod's service account. The connection is made when it
    /// is first used.
    ///
    /// # Errors
    ///
    /// When the credentials cannot even be read.
    pub async fn open(kubeconfig: Option<&Path>) -> Result<Self, ConnectError> {
        open(kubeconfig).await.map(Self)
    }
}

// === impl ApiFault ===

impl ApiFault {
    /// Describes an error. `what` was tried; `needs` is what RBAC must grant for it.
    pub(crate) fn new(what: &str, needs: &str, error: &kube::Error) -> Self {
        let (reason, passes) = if let kube::Error::Api(status) = error {
            let said = &status.message;
            match status.code {
                403 => (format!("{said}: grant {needs} to the service account"), false),
                401 => (format!("{said}: renew the credentials"), false),
                code => (said.clone(), code >= 500 || code == 429),
            }
        } else {
            (innermost(error), true)
        };
        Self { what: what.to_owned(), reason, passes }
    }

    /// Returns whether the fault may pass soon without anybody doing anything.
    pub fn passes(&self) -> bool {
        self.passes
    }
}

/// Bounds the time of a request: on a connection that died silently it would wait for ever.
pub(crate) async fn within<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let late = |_elapsed| kube::Error::Service(format!("no answer within {WITHIN:?}").into());
    tokio::time::timeout(WITHIN, request).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

/// Returns an error with its innermost cause: the layers between only repeat that something failed. For an answer of
/// the API server, returns the server's own words.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(kube::Error::Api(status)) = error.downcast_ref()
        && !status.message.is_empty()
    {
        return status.message.clone();
    }
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let (outer, inner) = (error.to_string(), innermost.to_string());
    if outer.contains(&inner) { outer } else { format!("{outer}: {inner}") }
}
