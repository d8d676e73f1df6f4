//! The operator's kubeconfig.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};

use super::{AskError, Operator};

/// How long a connection to the API server may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(20);

/// Which cluster to ask, and as whom.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The kubeconfig file. If not given: the files of `KUBECONFIG`, or `~/.kube/config`, or the service account of the
    /// pod that this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The context; if not given, the current one.
    pub context: Option<String>,
}

// === impl Access ===

impl Access {
    /// Reads the credentials; the connection is made when it is first used. `namespace` is where Sluice is installed.
    pub async fn open(&self, namespace: &str) -> Result<Operator, AskError> {
        let mut config = match self.read()? {
            Some((place, kubeconfig)) => self.choose(&place, kubeconfig).await?,
            None if is_in_cluster() => {
                let place = "the service account of this pod".to_owned();
                let unusable = |error: kube::config::InClusterError| AskError::Kubeconfig {
                    place,
                    reason: error.to_string(),
                };
                Config::incluster().map_err(unusable)?
            }
            None => return Err(AskError::NoKubeconfig),
        };
        config.connect_timeout = Some(CONNECT);
        config.read_timeout = Some(ANSWER);
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let unusable = |error: kube::Error| AskError::Credentials {
            server: server.clone(),
            reason: crate::client::innermost(&error),
        };
        let client = Client::try_from(config).map_err(unusable)?;
        Ok(Operator { client, server, namespace: namespace.to_owned() })
    }

    fn read(&self) -> Result<Option<(String, Kubeconfig)>, AskError> {
        let (place, read) = match &self.kubeconfig {
            Some(file) => (file.display().to_string(), Kubeconfig::read_from(file)),
            None if has_default() => ("the kubeconfig".to_owned(), Kubeconfig::read()),
            None => return Ok(None),
        };
        let unusable = |error: KubeconfigError| {
            let reason = if let KubeconfigError::ReadConfig(cause, file) = &error {
                format!("{}: {cause}", file.display())
            } else {
                error.to_string()
            };
            AskError::Kubeconfig { place: place.clone(), reason }
        };
        let kubeconfig = read.map_err(unusable)?;
        Ok(Some((place, kubeconfig)))
    }

    async fn choose(&self, place: &str, kubeconfig: Kubeconfig) -> Result<Config, AskError> {
        let name = self.context.clone().or_else(|| kubeconfig.current_context.clone());
        let known: Vec<&str> =
            kubeconfig.contexts.iter().map(|context| context.name.as_str()).collect();
        if name.as_deref().is_none_or(|name| !known.contains(&name)) {
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let (place, name) = (place.to_owned(), name.unwrap_or_default());
            return Err(AskError::NoContext { place, name, known });
        }
        let options =
            KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        let unusable = |error: KubeconfigError| AskError::Kubeconfig {
            place: place.to_owned(),
            reason: error.to_string(),
        };
        Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(unusable)
    }
}

fn has_default() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let home = std::env::home_dir();
    is_set("KUBECONFIG") || home.is_some_and(|home| Path::new(&home).join(".kube/config").exists())
}

fn is_in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
        clusters: [{name: c, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n\
        contexts: [{name: here, context: {cluster: c, user: u}}]\n";

    async fn open(text: &str, context: Option<&str>) -> Result<Operator, AskError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let kubeconfig = Some(file.path().to_owned());
        Access { kubeconfig, context: context.map(str::to_owned) }.open("sluice-system").await
    }

    #[tokio::test]
    async fn a_kubeconfig_that_is_no_use_is_named_with_what_to_do() {
        let said = |outcome: Result<Operator, AskError>| outcome.err().unwrap().to_string();
        let missing = Access { kubeconfig: Some("/nonexistent/config".into()), context: None };
        let text = said(missing.open("sluice-system").await);
        assert!(text.contains("/nonexistent/config") && text.contains("No such file"), "{text}");
        let text = said(open("clusters: 5", None).await);
        assert!(text.contains("cannot be used"), "{text}");
        let text = said(open(FILE, Some("there")).await);
        assert!(text.contains("no context \"there\"") && text.contains("here"), "{text}");
        let text = said(open(&FILE.replace("current-context: here", "# none"), None).await);
        assert!(text.contains("--context with one of here"), "{text}");
    }

    #[tokio::test]
    async fn an_api_server_that_is_not_there_is_named() {
        let operator = open(FILE, None).await.unwrap();
        let error = operator.roster().await.unwrap_err();
        assert!(matches!(error, AskError::Unreachable { .. }), "{error:?}");
        assert!(error.to_string().contains("https://127.0.0.1:1 does not answer"), "{error}");
    }
}
