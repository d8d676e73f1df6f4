//! The source of the mesh's state in one form, whichever source it is.

use std::{sync::Arc, time::SystemTime};

use sluice_cni::protocol::Attachment;
use sluice_kube::{
    Announcement, Announcements, Installation, KubeConfig, KubeSource, OwnPod, Reports,
};
use sluice_mesh::{EnrolmentRule, Snapshot, WorkloadUid};
use sluice_proxy::Shared;
use sluice_source::{AgentConfig, FileSource, KubernetesConfig, SourceConfig};
use tokio::sync::watch;

use crate::cni::{Announce, Deciding, Decision, FilePods};

/// A source that has been started.
pub(super) struct Started {
    pub(super) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(super) status: StatusHandle,
    /// Who decides whether a pod that the CNI plugin asks about belongs to the mesh.
    pub(super) announced: Announced,
    /// Where the outcome for the node's pods is reported, if anywhere.
    pub(super) reports: Option<Reports>,
    /// The agent's own pod, if it runs in one.
    pub(super) own_pod: Option<OwnPod>,
    /// Whether something on the node keeps the CNI plugin installed.
    pub(super) has_plugin: bool,
}

/// Who decides whether a pod that the CNI plugin asks about belongs to the mesh.
pub(super) enum Announced {
    /// The mesh file.
    Files,
    /// The API server.
    Cluster(Announcements),
}

/// The environment variable that names the agent's own pod.
const POD_VARIABLE: &str = "SLUICE_POD";

/// Gives access to the source's own state.
#[derive(Clone)]
pub(super) enum StatusHandle {
    Files(sluice_source::StatusHandle),
    Cluster(sluice_kube::StatusHandle),
}

/// The source's own state, in one form for all.
pub(super) struct Report {
    /// Counts the snapshots that were published.
    pub(super) version: u64,
    /// When the last snapshot was published.
    pub(super) loaded_at: Option<SystemTime>,
    /// What is wrong, and what is in force instead.
    pub(super) errors: Vec<String>,
    /// Every known policy, if the source also knows those that are not in force.
    pub(super) standings: Option<Vec<Standing>>,
    /// Remarks on policies in force.
    pub(super) policies: Vec<sluice_policy::Finding>,
    /// Remarks on other objects.
    pub(super) findings: Vec<String>,
    /// Whether the state in force was remembered from an earlier run.
    pub(super) is_provisional: bool,
    /// For how many seconds the source could not be followed, at least in part.
    pub(super) lag_seconds: u64,
}

/// A policy, and whether it is in force.
#[derive(Clone)]
pub(super) struct Standing {
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
    /// `metadata.generation` of the newest known version.
    pub(super) version: Option<i64>,
    /// Why this version is not in force, and what is in force instead.
    pub(super) refused: Option<String>,
}

pub(super) async fn start(config: &AgentConfig) -> anyhow::Result<Started> {
    match &config.source {
        SourceConfig::Files { .. } => {
            let FileSource { snapshots, status } = FileSource::watch(config)?;
            Ok(Started {
                snapshots,
                status: StatusHandle::Files(status),
                announced: Announced::Files,
                reports: None,
                own_pod: None,
                has_plugin: false,
            })
        }
        SourceConfig::Kubernetes(kubernetes) => {
            let source = KubeSource::start(kube_config(config, kubernetes)).await?;
            Ok(Started {
                snapshots: source.snapshots,
                status: StatusHandle::Cluster(source.status),
                announced: Announced::Cluster(source.announcements),
                reports: Some(source.reports),
                own_pod: source.own_pod,
                has_plugin: kubernetes.plugin,
            })
        }
    }
}

// === impl Announced ===

impl Announced {
    pub(super) fn by(self, shared: &Arc<Shared>, node: &str) -> Arc<dyn Announce> {
        match self {
            Self::Files => Arc::new(FilePods::new(Arc::clone(shared), node.to_owned())),
            Self::Cluster(announcements) => Arc::new(ClusterPods(announcements)),
        }
    }
}

fn kube_config(config: &AgentConfig, kubernetes: &KubernetesConfig) -> KubeConfig {
    KubeConfig {
        kubeconfig: kubernetes.kubeconfig.clone(),
        node: config.node.clone(),
        installation: installation(kubernetes),
        directory: config.state_dir.join("kubernetes").join(&config.instance),
        settings: sluice_cluster::Settings {
            root_namespace: kubernetes.root_namespace.clone(),
            own_namespace: kubernetes.own_namespace.clone(),
            enrolment: EnrolmentRule {
                label: kubernetes.enrolment_label.clone(),
                value: kubernetes.enrolment_value.clone(),
            },
            cluster_domain: kubernetes.cluster_domain.clone(),
            ..sluice_cluster::Settings::new(config.trust_domain.clone())
        },
    }
}

/// Returns where this agent is installed, as the configuration and its environment say; `None` if either does not.
fn installation(kubernetes: &KubernetesConfig) -> Option<Installation> {
    Some(Installation {
        namespace: kubernetes.own_namespace.clone(),
        daemon_set: kubernetes.daemon_set.clone()?,
        pod: std::env::var(POD_VARIABLE).ok()?,
    })
}

// === impl StatusHandle ===

impl StatusHandle {
    pub(super) fn report(&self) -> Report {
        match self {
            Self::Files(handle) => {
                let status = handle.status();
                Report {
                    version: status.version,
                    loaded_at: status.loaded_at,
                    errors: status.errors.iter().map(ToString::to_string).collect(),
                    standings: None,
                    policies: status.findings.clone(),
                    findings: Vec::new(),
                    is_provisional: false,
                    lag_seconds: 0,
                }
            }
            Self::Cluster(handle) => {
                let status = handle.status();
                Report {
                    version: status.version,
                    loaded_at: status.loaded_at,
                    errors: status.errors.iter().map(ToString::to_string).collect(),
                    standings: Some(status.standings.iter().map(Standing::of).collect()),
                    policies: status.policies.to_vec(),
                    findings: status.findings.iter().map(ToString::to_string).collect(),
                    is_provisional: status.is_provisional,
                    lag_seconds: status.lag().as_secs(),
                }
            }
        }
    }
}

// === impl Standing ===

impl Standing {
    fn of(standing: &sluice_cluster::PolicyStanding) -> Self {
        Self {
            kind: standing.kind.to_owned(),
            namespace: standing.namespace.to_string(),
            name: standing.name.to_string(),
            version: standing.generation,
            refused: standing.refused.as_ref().map(ToString::to_string),
        }
    }
}

/// Decides about the pods of a cluster by what its API server knows.
struct ClusterPods(Announcements);

impl Announce for ClusterPods {
    fn announce<'a>(&'a self, attachment: &'a Attachment) -> Deciding<'a> {
        Box::pin(async {
            let Attachment { netns, addresses, pod, .. } = attachment;
            // Without Kubernetes' names it is none of the cluster's pods.
            let Some(pod) = pod else { return Ok(Decision::Outside) };
            let Some(netns) = netns else {
                return Err("the runtime names no network namespace".to_owned());
            };
            let announcement = Announcement {
                uid: pod.uid.clone(),
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                netns: netns.clone(),
                addresses: addresses.clone(),
            };
            match self.0.announce(announcement).await {
                Ok(sluice_kube::Decision::Enrolled(uid)) => Ok(Decision::Enrolled(uid)),
                Ok(sluice_kube::Decision::Outside(_)) => Ok(Decision::Outside),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn withdraw(&self, uid: &WorkloadUid) {
        self.0.withdraw(&uid.0);
    }
}
