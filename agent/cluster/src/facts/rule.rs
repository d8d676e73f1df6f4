//! What matters to the mesh in a `DestinationRule`: which ports of which service are reached without the mesh.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{Complaint, Name};
use crate::{
    Meaning, Settings,
    intern::Interner,
    object::{DestinationRule, Tls},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RuleFacts {
    pub(crate) name: Name,
    /// The host, as it was written.
    pub(crate) host: Arc<str>,
    /// The service that the host could name.
    pub(crate) service: Option<Name>,
    /// How ports that are not in `ports` are reached.
    pub(crate) default: Reach,
    pub(crate) ports: BTreeMap<u16, Reach>,
    pub(crate) complaints: Vec<Complaint>,
}

/// How a port is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reach {
    /// In the way that the mesh decides.
    Mesh,
    /// Without the mesh.
    Direct,
}

// === impl RuleFacts ===

impl RuleFacts {
    /// Returns `None` for a rule that says nothing about TLS.
    pub(crate) fn of(
        rule: &DestinationRule,
        settings: &Settings,
        names: &mut Interner,
    ) -> Option<Self> {
        let policy = rule.spec.traffic_policy.as_ref()?;
        let has_tls = policy.port_level_settings.iter().any(|port| port.tls.is_some());
        if policy.tls.is_none() && !has_tls {
            return None;
        }
        let namespace = names.text(&rule.metadata.namespace);
        let mut complaints = Vec::new();
        let mut reach = |tls: &Option<Tls>, field: &str| match tls {
            Some(tls) if matches!(tls.mode.as_str(), "DISABLE" | "SIMPLE") => Reach::Direct,
            None => Reach::Mesh,
            Some(tls) if tls.mode == "ISTIO_MUTUAL" => Reach::Mesh,
            Some(tls) => {
                let meaning = Meaning::UnknownTlsMode(tls.mode.clone());
                complaints.push(Complaint { field: field.to_owned(), meaning });
                Reach::Mesh
            }
        };
        let mut default = reach(&policy.tls, "spec.trafficPolicy.tls.mode");
        let ports = policy.port_level_settings.iter().filter_map(|level| {
            let number = u16::try_from(level.port.as_ref()?.number).ok()?;
            Some((number, reach(&level.tls, "spec.trafficPolicy.portLevelSettings[*].tls.mode")))
        });
        let mut ports: BTreeMap<u16, Reach> = ports.collect();
        if rule.spec.workload_selector.is_some() {
            let field = "spec.workloadSelector".to_owned();
            complaints.push(Complaint { field, meaning: Meaning::SomeClients });
            default = Reach::Mesh;
            ports.clear();
        }
        Some(Self {
            service: service_of(&rule.spec.host, &namespace, settings, names),
            name: Name { namespace, name: rule.metadata.name.as_str().into() },
            host: rule.spec.host.as_str().into(),
            default,
            ports,
            complaints,
        })
    }

    pub(crate) fn reach(&self, port: u16) -> Reach {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }
}

/// Returns the service that a host names. As in Istio, a name without dots is a service of the rule's own namespace,
/// and any other is spelled out.
fn service_of(
    host: &str,
    namespace: &Arc<str>,
    settings: &Settings,
    names: &mut Interner,
) -> Option<Name> {
    let Some((name, rest)) = host.split_once('.') else {
        return Some(Name { namespace: Arc::clone(namespace), name: names.text(host) });
    };
    let (owner, rest) = rest.split_once('.')?;
    let domain = rest.strip_prefix("svc")?;
    let is_ours = domain.is_empty() || domain.strip_prefix('.') == Some(&settings.cluster_domain);
    is_ours.then(|| Name { namespace: names.text(owner), name: names.text(name) })
}
