//! What matters to the mesh in a pod.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use sluice_mesh::{Bypass, Labels};

use super::Complaint;
use crate::{
    annotation,
    intern::Interner,
    object::{CAPTURED, Pod, REDIRECTION, SIDECAR},
    probe,
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodFacts {
    pub(crate) uid: Arc<str>,
    /// The UID by which its node knows it, if that is another one.
    pub(crate) static_uid: Option<Arc<str>>,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
    pub(crate) account: Arc<str>,
    /// The pod's node; empty until the pod is scheduled.
    pub(crate) node: Arc<str>,
    pub(crate) labels: Labels,
    /// When the pod was created: RFC 3339 in UTC, which sorts by time.
    pub(crate) created: Arc<str>,
    /// The addresses that the pod's node reports; none if the pod uses the host's network.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) host_network: bool,
    pub(crate) stage: Stage,
    pub(crate) probe_ports: BTreeSet<u16>,
    pub(crate) bypass: Bypass,
    #[serde(default)]
    pub(crate) has_sidecar: bool,
    #[serde(default)]
    pub(crate) marks: Marks,
    pub(crate) complaints: Vec<Complaint>,
}

/// How far a pod has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stage {
    pub(crate) running: bool,
    pub(crate) terminating: bool,
    pub(crate) ready: bool,
}

/// Which annotations a pod carries that say that it is captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// Istio's ([`REDIRECTION`]), which its own node agent writes as well.
    pub istios: bool,
    /// Ours ([`CAPTURED`]).
    pub ours: bool,
}

// === impl PodFacts ===

impl PodFacts {
    /// Returns `None` for a pod that has ended: its address is somebody else's, or soon will be.
    pub(crate) fn of(pod: &Pod, names: &mut Interner) -> Option<Self> {
        let Pod { metadata, spec, status } = pod;
        let phase = status.phase.as_deref();
        if matches!(phase, Some("Succeeded" | "Failed")) {
            return None;
        }
        let mut complaints = Vec::new();
        let is_ready = || {
            status.conditions.iter().any(|found| found.kind == "Ready" && found.status == "True")
        };
        let addresses = if spec.host_network {
            Vec::new()
        } else {
            let mut addresses: Vec<_> =
                status.pod_ips.iter().map(|ip| ip.ip.to_canonical()).filter(is_unicast).collect();
            let mut seen = BTreeSet::new();
            addresses.retain(|address| seen.insert(*address));
            addresses
        };
        Some(Self {
            uid: metadata.uid.as_str().into(),
            static_uid: pod.static_uid().map(Into::into),
            namespace: names.text(&metadata.namespace),
            name: metadata.name.as_str().into(),
            account: names.text(spec.service_account_name.as_deref().unwrap_or("default")),
            node: names.text(spec.node_name.as_deref().unwrap_or_default()),
            labels: names.labels(metadata.labels.clone()),
            created: names.text(&metadata.creation_timestamp),
            addresses,
            host_network: spec.host_network,
            stage: Stage {
                running: phase == Some("Running"),
                terminating: metadata.deletion_timestamp.is_some(),
                ready: metadata.deletion_timestamp.is_none() && is_ready(),
            },
            probe_ports: probe::ports(spec, &mut complaints),
            bypass: annotation::bypass(&metadata.annotations, &mut complaints),
            has_sidecar: metadata.annotations.contains_key(SIDECAR),
            marks: Marks {
                istios: metadata.annotations.get(REDIRECTION).is_some_and(|on| on == "enabled"),
                ours: metadata.annotations.contains_key(CAPTURED),
            },
            complaints,
        })
    }

    /// Shares texts and labels that equal others', after the facts were read from disk.
    pub(crate) fn share(&mut self, names: &mut Interner) {
        for text in [&mut self.namespace, &mut self.account, &mut self.node, &mut self.created] {
            *text = names.text(text);
        }
        self.labels = names.labels(self.labels.as_ref().clone());
    }
}

pub(super) fn is_unicast(address: &IpAddr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
}
