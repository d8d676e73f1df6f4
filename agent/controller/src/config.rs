//! The controller's configuration: one YAML file, read once at start.

mod written;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_saphyr::{Location, Spanned};
use sluice_source::{FileError, yaml};
use sluice_spiffe::{IdError, TrustDomain};
use sluice_tls::{DEFAULT_TTL, MIN_TTL};

use self::written::{Written, WrittenCa, WrittenCallers, WrittenPods, WrittenReview, WrittenRoots};

const DEFAULT_NEW_ROOT_DELAY: Duration = Duration::from_mins(2);
const ACCOUNTS: &str = "callers.kubernetes.serviceAccounts";

/// How the controller is set up. Relative paths in the file are relative to the file's directory; here they are
/// joined with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerConfig {
    /// The address to listen on; `0.0.0.0:15012` by default.
    pub listen: SocketAddr,
    /// The address that serves metrics and health (HTTP), if any.
    pub metrics: Option<SocketAddr>,
    /// The trust domain whose workloads are issued for; `cluster.local` by default.
    pub trust_domain: TrustDomain,
    /// The longest lifetime of a certificate, at least a minute; 24 h by default.
    pub ttl: Duration,
    /// The names that agents call the controller by.
    pub server_names: Vec<String>,
    /// Where the authority's key and certificate are.
    pub ca: CaPlace,
    /// Where the roots are published, if anywhere.
    pub publish_roots: Option<PublishConfig>,
    /// How callers prove themselves.
    pub callers: CallersConfig,
    /// Where the controller learns which pods run on which node.
    pub pods: PodsConfig,
    /// Where and how the controller reports on policies, if it does.
    pub policy_status: Option<PolicyStatusConfig>,
    /// The kubeconfig file for whatever is asked of Kubernetes; `None` uses the service account of the controller's own
    /// pod.
    pub kubeconfig: Option<PathBuf>,
    /// Level of the logs; `info` by default.
    pub log_level: String,
}

/// Where the authority's roots are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishConfig {
    /// The `ConfigMap`, which agents mount.
    pub config_map: ObjectName,
    /// How long a new root is there before anything is issued under it; 2 min by default. A kubelet takes up to a
    /// minute and a half to bring a change of a `ConfigMap` into a pod, unless it is configured otherwise. The first
    /// roots of all need no time.
    pub new_root_delay: Duration,
}

/// Where the authority's key and certificate are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaPlace {
    /// An authority made on first start, in this directory; `/var/lib/sluice/ca` by default.
    Embedded(PathBuf),
    /// `tls.crt`, `tls.key` and `ca.crt` in this directory, as cert-manager lays them out.
    CertManager(PathBuf),
    /// The same files in a Kubernetes Secret, which is made on first start.
    Secret(ObjectName),
}

/// The name of a Kubernetes object of a known kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectName {
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
}

/// How the controller reports on policies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyStatusConfig {
    /// The `Lease` by which the replica that writes is elected.
    pub lease: ObjectName,
    /// Namespace whose policies are those of the whole mesh; `istio-system` by default.
    pub root_namespace: String,
}

/// How callers prove themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallersConfig {
    /// By the tokens in a file.
    Tokens(PathBuf),
    /// By service-account tokens that the Kubernetes API judges.
    Kubernetes {
        /// The audience that the tokens must have been made for.
        audience: String,
        /// Service accounts of agents, namespace and name.
        agents: Vec<(String, String)>,
    },
}

/// Where the controller learns which pods run on which node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodsConfig {
    /// From a mesh file.
    Mesh(PathBuf),
    /// From the Kubernetes API.
    Kubernetes,
}

/// What is wrong with the configuration. Each message names the file, and the line where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read, or is not the YAML that is expected.
    #[error(transparent)]
    File(#[from] FileError),
    /// A value is not acceptable.
    #[error("{}:{line}: {field}: {problem}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// The field, such as `ca.dir`.
        field: &'static str,
        /// What is wrong with it.
        problem: ConfigProblem,
    },
}

/// What can be wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// Not an address with a port.
    #[error("{0:?} is not an address with a port, such as 0.0.0.0:15012 or [::]:15012")]
    Listen(String),
    /// Not a trust domain.
    #[error("{0}")]
    TrustDomain(IdError),
    /// Not a duration.
    #[error("{0:?} is not a duration: a whole number and s, m, h or d, such as 24h")]
    Duration(String),
    /// The lifetime is too short to be renewed in time.
    #[error("{} s are too short to be renewed in time: give at least 1m", .0.as_secs())]
    TooShort(Duration),
    /// The list is empty.
    #[error("needs at least one entry")]
    Empty,
    /// Not one of the modes.
    #[error(
        "{0:?} is not a mode: `embedded` makes a CA on first start, `secret` makes one in a Secret, `pem` reads tls.crt, tls.key and \
         ca.crt"
    )]
    CaMode(String),
    /// Mode `pem` needs a directory.
    #[error("mode pem needs `dir`, the directory with tls.crt, tls.key and ca.crt")]
    NoDirectory,
    /// Mode `secret` needs the Secret's namespace and name.
    #[error("mode secret needs `namespace` and `name`, those of the Secret")]
    NoSecret,
    /// The field belongs to another mode.
    #[error("mode {0} has no such field: remove it")]
    NotOfMode(&'static str),
    /// None or both of two alternatives are given.
    #[error("choose one of `{0}` and `{1}`")]
    OneOf(&'static str, &'static str),
    /// Not `namespace/name`.
    #[error("{0:?} is not a service account: write namespace/name")]
    Account(String),
}

/// Checks what is written: names the file in errors, and joins paths with its directory.
struct Reader<'a> {
    file: &'a Path,
    directory: &'a Path,
}

// === impl ControllerConfig ===

impl ControllerConfig {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |error: std::io::Error| FileError::Unreadable {
            file: path.to_owned(),
            reason: error.to_string(),
        };
        let text = fs::read_to_string(path).map_err(unreadable)?;
        let whole = std::path::absolute(path).map_err(unreadable)?;
        Self::parse(path, whole.parent().unwrap_or(Path::new("/")), &text)
    }

    fn parse(file: &Path, directory: &Path, text: &str) -> Result<Self, ConfigError> {
        let written: Written = yaml::parse(file, text)?;
        let reader = Reader { file, directory };
        Ok(Self {
            listen: reader
                .address("listen", written.listen)?
                .unwrap_or(SocketAddr::from(([0, 0, 0, 0], 15012))),
            metrics: reader.address("metrics", written.metrics)?,
            trust_domain: reader.trust_domain(written.trust_domain)?,
            ttl: reader.ttl(written.ttl)?,
            server_names: reader.server_names(written.server_names)?,
            publish_roots: reader.publish_roots(written.ca.as_ref())?,
            ca: reader.ca(written.ca)?,
            callers: reader.callers(written.callers)?,
            pods: reader.pods(written.pods)?,
            policy_status: written.policy_status.map(PolicyStatusConfig::from),
            kubeconfig: written.kubeconfig.map(|path| directory.join(path)),
            log_level: written.log_level.unwrap_or_else(|| "info".to_owned()),
        })
    }
}

// === impl Reader ===

impl Reader<'_> {
    fn refuse(&self, at: Location, field: &'static str, problem: ConfigProblem) -> ConfigError {
        ConfigError::Content { file: self.file.to_owned(), line: at.line(), field, problem }
    }

    fn address(
        &self,
        field: &'static str,
        written: Option<Spanned<String>>,
    ) -> Result<Option<SocketAddr>, ConfigError> {
        let Some(Spanned { value, referenced: at, .. }) = written else { return Ok(None) };
        let parsed = value.parse();
        parsed.map(Some).map_err(|_error| self.refuse(at, field, ConfigProblem::Listen(value)))
    }

    fn trust_domain(&self, written: Option<Spanned<String>>) -> Result<TrustDomain, ConfigError> {
        let (name, at) = match written {
            Some(Spanned { value, referenced, .. }) => (value, referenced),
            None => ("cluster.local".to_owned(), Location::UNKNOWN),
        };
        let problem = |error| self.refuse(at, "trustDomain", ConfigProblem::TrustDomain(error));
        name.parse().map_err(problem)
    }

    fn duration(
        &self,
        field: &'static str,
        written: Spanned<String>,
    ) -> Result<Duration, ConfigError> {
        let Spanned { value, referenced: at, .. } = written;
        duration(&value).ok_or_else(|| self.refuse(at, field, ConfigProblem::Duration(value)))
    }

    fn ttl(&self, written: Option<Spanned<String>>) -> Result<Duration, ConfigError> {
        let Some(written) = written else { return Ok(DEFAULT_TTL) };
        let at = written.referenced;
        let ttl = self.duration("ttl", written)?;
        if ttl < MIN_TTL {
            return Err(self.refuse(at, "ttl", ConfigProblem::TooShort(ttl)));
        }
        Ok(ttl)
    }

    fn server_names(
        &self,
        written: Option<Spanned<Vec<String>>>,
    ) -> Result<Vec<String>, ConfigError> {
        match written {
            None => Ok(["", ".cluster.local"]
                .map(|suffix| format!("sluice-controller.sluice-system.svc{suffix}"))
                .to_vec()),
            Some(names) if names.value.is_empty() => {
                Err(self.refuse(names.referenced, "serverNames", ConfigProblem::Empty))
            }
            Some(names) => Ok(names.value),
        }
    }

    fn ca(&self, written: Option<Spanned<WrittenCa>>) -> Result<CaPlace, ConfigError> {
        let default = Path::new("/var/lib/sluice/ca");
        let Some(Spanned { value, referenced: at, .. }) = written else {
            return Ok(CaPlace::Embedded(default.to_owned()));
        };
        let WrittenCa { mode, dir, namespace, name, .. } = value;
        let dir = dir.map(|dir| self.directory.join(dir));
        let object = namespace.zip(name).map(|(namespace, name)| ObjectName { namespace, name });
        match (mode.value.as_str(), dir, object) {
            ("embedded", dir, None) => {
                Ok(CaPlace::Embedded(dir.unwrap_or_else(|| default.to_owned())))
            }
            ("pem", Some(dir), None) => Ok(CaPlace::CertManager(dir)),
            ("pem", None, None) => Err(self.refuse(at, "ca.dir", ConfigProblem::NoDirectory)),
            ("secret", None, Some(object)) => Ok(CaPlace::Secret(object)),
            ("secret", None, None) => Err(self.refuse(at, "ca", ConfigProblem::NoSecret)),
            ("secret", Some(_), _) => {
                Err(self.refuse(at, "ca.dir", ConfigProblem::NotOfMode("secret")))
            }
            ("embedded", _, Some(_)) => {
                Err(self.refuse(at, "ca.name", ConfigProblem::NotOfMode("embedded")))
            }
            ("pem", _, Some(_)) => Err(self.refuse(at, "ca.name", ConfigProblem::NotOfMode("pem"))),
            (other, _, _) => {
                let problem = ConfigProblem::CaMode(other.to_owned());
                Err(self.refuse(mode.referenced, "ca.mode", problem))
            }
        }
    }

    fn publish_roots(
        &self,
        ca: Option<&Spanned<WrittenCa>>,
    ) -> Result<Option<PublishConfig>, ConfigError> {
        let written = ca.and_then(|ca| ca.value.publish_roots.clone());
        let Some(WrittenRoots { namespace, config_map: name, new_root_delay }) = written else {
            return Ok(None);
        };
        let delay = |written| self.duration("ca.publishRoots.newRootDelay", written);
        let new_root_delay = new_root_delay.map_or(Ok(DEFAULT_NEW_ROOT_DELAY), delay)?;
        Ok(Some(PublishConfig { config_map: ObjectName { namespace, name }, new_root_delay }))
    }

    fn callers(&self, written: Spanned<WrittenCallers>) -> Result<CallersConfig, ConfigError> {
        let at = written.referenced;
        let review = match written.value {
            WrittenCallers { tokens: Some(tokens), kubernetes: None } => {
                return Ok(CallersConfig::Tokens(self.directory.join(tokens)));
            }
            WrittenCallers { tokens: None, kubernetes: Some(review) } => review,
            WrittenCallers { .. } => {
                let problem = ConfigProblem::OneOf("tokens", "kubernetes");
                return Err(self.refuse(at, "callers", problem));
            }
        };
        let WrittenReview { audience, service_accounts: accounts } = review;
        if accounts.value.is_empty() {
            return Err(self.refuse(accounts.referenced, ACCOUNTS, ConfigProblem::Empty));
        }
        let account = |account: Spanned<String>| match account.value.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok((namespace.to_owned(), name.to_owned()))
            }
            _ => Err(self.refuse(
                account.referenced,
                ACCOUNTS,
                ConfigProblem::Account(account.value),
            )),
        };
        Ok(CallersConfig::Kubernetes {
            audience: audience.unwrap_or_else(|| "sluice-ca".to_owned()),
            agents: accounts.value.into_iter().map(account).collect::<Result<_, _>>()?,
        })
    }

    fn pods(&self, written: Spanned<WrittenPods>) -> Result<PodsConfig, ConfigError> {
        match written.value {
            WrittenPods { mesh: Some(mesh), kubernetes: false } => {
                Ok(PodsConfig::Mesh(self.directory.join(mesh)))
            }
            WrittenPods { mesh: None, kubernetes: true } => Ok(PodsConfig::Kubernetes),
            WrittenPods { .. } => {
                let problem = ConfigProblem::OneOf("mesh", "kubernetes");
                Err(self.refuse(written.referenced, "pods", problem))
            }
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    // `parse` would accept a sign too.
    let number: u32 =
        number.bytes().all(|byte| byte.is_ascii_digit()).then_some(number)?.parse().ok()?;
    Some(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests;
