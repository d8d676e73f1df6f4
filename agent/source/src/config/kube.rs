//! Where the state of the mesh comes from: a file and a directory of policies, or a Kubernetes cluster.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use crate::{FileError, Problem, names, yaml};

/// Where the state of the mesh comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// Files of this machine.
    Files {
        /// The file with the state of the mesh.
        mesh: PathBuf,
        /// The directory of policies; `None` enforces none.
        policies: Option<PathBuf>,
    },
    /// A cluster's API server.
    Kubernetes(KubernetesConfig),
}

/// What the DNS names of services end in, unless a cluster is set up otherwise.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// How to reach a cluster, and how to understand its objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesConfig {
    /// A kubeconfig file; `None` uses the service account of the agent's own pod.
    pub kubeconfig: Option<PathBuf>,
    /// Namespace whose policies are those of the whole mesh; `istio-system` by default.
    pub root_namespace: String,
    /// Namespace of our own pods; `sluice-system` by default.
    pub own_namespace: String,
    /// The label that enrols; `istio.io/dataplane-mode` by default.
    pub enrolment_label: String,
    /// The value of that label that enrols; `ambient` by default.
    pub enrolment_value: String,
    /// DNS domain of the cluster; `cluster.local` by default.
    pub cluster_domain: String,
    /// The DaemonSet that the agent's pod belongs to; the variable `SLUICE_POD` names the pod. `None` for an agent that
    /// runs outside the cluster.
    pub daemon_set: Option<String>,
    /// Whether `sluice-cni watch` keeps the plugin installed on the node; an uninstallation then waits for it.
    pub plugin: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenKubernetes {
    #[serde(default)]
    kubeconfig: Option<PathBuf>,
    #[serde(default)]
    root_namespace: Option<Spanned<String>>,
    #[serde(default)]
    own_namespace: Option<Spanned<String>>,
    #[serde(default)]
    enrolment: Option<WrittenEnrolment>,
    #[serde(default)]
    cluster_domain: Option<Spanned<String>>,
    #[serde(default)]
    daemon_set: Option<Spanned<String>>,
    #[serde(default)]
    plugin: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenEnrolment {
    label: Spanned<String>,
    value: String,
}

/// The fields of the file that name the source.
pub(super) struct Written {
    pub(super) mesh: Option<Spanned<PathBuf>>,
    pub(super) policies: Option<Spanned<PathBuf>>,
    pub(super) kubernetes: Option<Spanned<WrittenKubernetes>>,
}

pub(super) fn read(
    file: &Path,
    directory: &Path,
    written: Written,
) -> Result<SourceConfig, FileError> {
    let refuse = |at: Location, field: &str, problem| Err(yaml::content(file, at, field, problem));
    match written {
        Written { mesh: None, kubernetes: None, .. } => {
            refuse(Location::UNKNOWN, "mesh", Problem::NoSource)
        }
        Written { mesh: Some(mesh), kubernetes: Some(_), .. } => {
            refuse(mesh.referenced, "mesh", Problem::TwoSources)
        }
        Written { policies: Some(policies), kubernetes: Some(_), .. } => {
            refuse(policies.referenced, "policies", Problem::PoliciesOfCluster)
        }
        Written { mesh: Some(mesh), policies, .. } => Ok(SourceConfig::Files {
            mesh: directory.join(mesh.value),
            policies: policies.map(|path| directory.join(path.value)),
        }),
        Written { kubernetes: Some(kubernetes), .. } => {
            kubernetes.value.read(file, directory).map(SourceConfig::Kubernetes)
        }
    }
}

// === impl SourceConfig ===

impl SourceConfig {
    /// Returns what the DNS names of services end in, after `svc`.
    pub fn cluster_domain(&self) -> &str {
        match self {
            Self::Files { .. } => CLUSTER_DOMAIN,
            Self::Kubernetes(kubernetes) => &kubernetes.cluster_domain,
        }
    }
}

// === impl WrittenKubernetes ===

impl WrittenKubernetes {
    fn read(self, file: &Path, directory: &Path) -> Result<KubernetesConfig, FileError> {
        let name = |field: &str, written: Option<Spanned<String>>, default: &str| {
            let Some(Spanned { value, referenced, .. }) = written else {
                return Ok(default.to_owned());
            };
            if names::is_subdomain(&value) {
                return Ok(value);
            }
            let field = format!("kubernetes.{field}");
            Err(yaml::content(file, referenced, field, Problem::NotASubdomain(value)))
        };
        let (enrolment_label, enrolment_value) = match self.enrolment {
            Some(WrittenEnrolment { label, value }) => {
                if !is_label_name(&label.value) {
                    let problem = Problem::NotALabelName(label.value);
                    let field = "kubernetes.enrolment.label";
                    return Err(yaml::content(file, label.referenced, field, problem));
                }
                (label.value, value)
            }
            None => ("istio.io/dataplane-mode".to_owned(), "ambient".to_owned()),
        };
        Ok(KubernetesConfig {
            kubeconfig: self.kubeconfig.map(|path| directory.join(path)),
            root_namespace: name("rootNamespace", self.root_namespace, "istio-system")?,
            own_namespace: name("ownNamespace", self.own_namespace, "sluice-system")?,
            enrolment_label,
            enrolment_value,
            cluster_domain: name("clusterDomain", self.cluster_domain, CLUSTER_DOMAIN)?,
            daemon_set: self.daemon_set.map(|set| name("daemonSet", Some(set), "")).transpose()?,
            plugin: self.plugin,
        })
    }
}

/// Returns whether `text` is a label's name, with or without a prefix (Kubernetes' qualified names).
fn is_label_name(text: &str) -> bool {
    let (prefix, name) =
        text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends_well = |text: &str| {
        let ends = [text.bytes().next(), text.bytes().last()];
        ends.iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
    };
    prefix.is_none_or(names::is_subdomain)
        && (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && ends_well(name)
}

#[cfg(test)]
mod tests {
    use super::{super::AgentConfig, *};

    fn parse(text: &str) -> Result<AgentConfig, FileError> {
        let text = format!("node: n\n{text}");
        AgentConfig::parse(Path::new("agent.yaml"), Path::new("/etc/sluice"), &text, None)
    }

    #[test]
    fn a_cluster_needs_no_more_than_its_name() {
        let SourceConfig::Kubernetes(found) = parse("kubernetes: {}\n").unwrap().source else {
            panic!("not a cluster");
        };
        let expected = KubernetesConfig {
            kubeconfig: None,
            root_namespace: "istio-system".to_owned(),
            own_namespace: "sluice-system".to_owned(),
            enrolment_label: "istio.io/dataplane-mode".to_owned(),
            enrolment_value: "ambient".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            daemon_set: None,
            plugin: false,
        };
        assert_eq!(found, expected);
        let written = "kubernetes: {kubeconfig: k, rootNamespace: r, ownNamespace: o, clusterDomain: c.d, \
                       daemonSet: d, plugin: true, \
                       enrolment: {label: example.org/mesh, value: 'on'}}\n";
        let SourceConfig::Kubernetes(found) = parse(written).unwrap().source else {
            panic!("not a cluster");
        };
        assert_eq!(found.kubeconfig.as_deref(), Some(Path::new("/etc/sluice/k")));
        assert_eq!((found.daemon_set.as_deref(), found.plugin), (Some("d"), true));
        assert_eq!(
            (found.enrolment_label.as_str(), found.enrolment_value.as_str()),
            ("example.org/mesh", "on")
        );
    }

    #[test]
    fn there_is_exactly_one_source() {
        for (text, words) in [
            ("", "set mesh (a file) or kubernetes"),
            ("mesh: m\nkubernetes: {}\n", "agent.yaml:2: mesh: kubernetes is set too"),
            ("policies: p\nkubernetes: {}\n", "agent.yaml:2: policies: the cluster's own policies"),
            ("kubernetes: {rootNamespace: A}\n", "agent.yaml:2: kubernetes.rootNamespace: \"A\""),
            ("kubernetes: {namespace: a}\n", "unknown field `namespace`"),
            (
                "kubernetes: {enrolment: {label: a/b/c, value: x}}\n",
                "kubernetes.enrolment.label: \"a/b/c\"",
            ),
        ] {
            let said = parse(text).unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        }
    }
}
