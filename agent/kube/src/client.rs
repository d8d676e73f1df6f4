//! The connection to the API server.

use std::path::PathBuf;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use crate::KubeConfig;

/// Why the API server cannot even be tried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The kubeconfig file is not usable.
    #[error("{}: {reason}: correct kubernetes.kubeconfig, or remove it to use the pod's service account", file.display())]
    Kubeconfig {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Not in a pod, or one without a service account.
    #[error("no service account ({0}): run in a pod with one, or set kubernetes.kubeconfig")]
    NoAccount(String),
    /// The credentials are not usable.
    #[error("the credentials for the API server cannot be used: {0}")]
    Credentials(String),
}

/// Reads the credentials; connects when it is first used.
pub(crate) async fn open(config: &KubeConfig) -> Result<Client, ConnectError> {
    let client = match &config.kubeconfig {
        Some(file) => {
            let refuse = |error: kube::config::KubeconfigError| ConnectError::Kubeconfig {
                file: file.clone(),
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

/// What is at the bottom of an error: the layers above only repeat that something failed.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let (outer, inner) = (error.to_string(), innermost.to_string());
    if outer.contains(&inner) { outer } else { format!("{outer}: {inner}") }
}
