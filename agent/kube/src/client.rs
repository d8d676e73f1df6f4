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

/// How long one request may take that is no watch.
const WITHIN: Duration = Duration::from_secs(10);

/// Why the API server cannot even be tried.
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
    /// Not in a pod, or one without a service account.
    #[error(
        "no service account ({0}): run in a pod with one, or set `kubeconfig` in the configuration"
    )]
    NoAccount(String),
    /// The credentials are not usable.
    #[error("the credentials for the API server cannot be used: {0}")]
    Credentials(String),
}

/// Reads the credentials; connects when it is first used.
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

/// A connection to the API server, for who does not follow a whole cluster; cheap to clone.
#[derive(Clone)]
pub struct ApiServer(pub(crate) Client);

/// The API server did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct ApiFault {
    what: String,
    reason: String,
    passes: bool,
}

// === impl ApiServer ===

impl ApiServer {
    /// Reads the credentials of a kubeconfig file, or of the service account of our own pod; connects when it is
    /// first used.
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
    /// `what` was tried; `needs` is what RBAC must grant for it.
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

    /// Whether it may be otherwise soon without anybody doing anything.
    pub fn passes(&self) -> bool {
        self.passes
    }
}

/// Has a request end: a connection that died silently would keep it for ever.
pub(crate) async fn within<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    let late = |_elapsed| kube::Error::Service(format!("no answer within {WITHIN:?}").into());
    tokio::time::timeout(WITHIN, request).await.unwrap_or_else(|elapsed| Err(late(elapsed)))
}

/// What is at the bottom of an error: the layers above only repeat that something failed. Of the API server's answer,
/// its own words.
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
