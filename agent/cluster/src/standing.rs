//! Whether a pod belongs to the mesh, and why not: the same decision for the snapshot, the CNI plugin's question and
//! whoever else asks.

use std::collections::BTreeMap;

use sluice_mesh::Enrolment;

use crate::{Settings, facts::PodFacts};

/// Whether a pod belongs to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its connections are to be carried by the mesh.
    Enrolled,
    /// It is left alone.
    Outside(Outside),
}

/// Why a pod is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Outside {
    /// It uses its node's network namespace and addresses.
    #[error("it uses the node's network")]
    HostNetwork,
    /// The mesh is being taken down.
    #[error("Sluice is being uninstalled")]
    Leaving,
    /// It is one of Sluice's own pods.
    #[error("it is part of Sluice itself")]
    Own,
    /// Neither the pod nor its namespace is labelled for the mesh.
    #[error("neither it nor its namespace is labelled for the mesh")]
    NotLabelled,
    /// Istio's sidecar redirects its connections already.
    #[error("it has an Istio sidecar: restart it without one")]
    Sidecar,
}

impl Standing {
    pub(crate) fn of(
        pod: &PodFacts,
        namespace_labels: &BTreeMap<String, String>,
        settings: &Settings,
    ) -> Self {
        let (label, value) = &settings.own_label;
        let is_own =
            *pod.namespace == *settings.own_namespace && pod.labels.get(label) == Some(value);
        if pod.host_network {
            Self::Outside(Outside::HostNetwork)
        } else if is_own {
            Self::Outside(Outside::Own)
        } else if settings.leaving {
            Self::Outside(Outside::Leaving)
        } else {
            match settings.enrolment.decide(namespace_labels, &pod.labels) {
                // As in Istio's ambient mode: two proxies would each redirect what the other delivers.
                Enrolment::Enrolled if pod.has_sidecar => Self::Outside(Outside::Sidecar),
                Enrolment::Enrolled => Self::Enrolled,
                Enrolment::Outside => Self::Outside(Outside::NotLabelled),
            }
        }
    }
}
