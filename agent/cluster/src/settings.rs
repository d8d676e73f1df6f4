//! The settings by which objects are understood.

use sluice_mesh::EnrolmentRule;
use sluice_spiffe::TrustDomain;

/// How objects are understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Trust domain of every pod's identity.
    pub trust_domain: TrustDomain,
    /// Namespace whose policies are those of the whole mesh; `istio-system` in Istio.
    pub root_namespace: String,
    /// The label that enrols.
    pub enrolment: EnrolmentRule,
    /// Namespace of our own pods.
    pub own_namespace: String,
    /// Label, with its value, that our own pods carry there; they are never enrolled.
    pub own_label: (String, String),
    /// DNS domain of the cluster, as hosts of `DestinationRule`s spell it out.
    pub cluster_domain: String,
    /// Whether the mesh is being taken down; see [`Cluster::set_leaving`](crate::Cluster::set_leaving).
    pub leaving: bool,
}

// === impl Settings ===

impl Settings {
    /// Returns the defaults for one trust domain.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            root_namespace: "istio-system".to_owned(),
            enrolment: EnrolmentRule::default(),
            own_namespace: "sluice-system".to_owned(),
            own_label: ("app.kubernetes.io/part-of".to_owned(), "sluice".to_owned()),
            cluster_domain: "cluster.local".to_owned(),
            leaving: false,
        }
    }
}
