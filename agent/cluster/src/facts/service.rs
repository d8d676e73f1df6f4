//! What matters to the mesh in services and their slices.

use std::{net::IpAddr, sync::Arc};

use serde::{Deserialize, Serialize};
use sluice_mesh::{Prefer, Routing};

use super::{Name, is_tcp, pod::is_unicast};
use crate::{
    intern::Interner,
    object::{EndpointSlice, Service, ServiceSpec, SliceEndpoint},
};

/// The label that ties a slice to its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServiceFacts {
    pub(crate) name: Name,
    /// The virtual addresses; none for a headless service.
    pub(crate) addresses: Vec<IpAddr>,
    /// Of load balancers.
    #[serde(default)]
    pub(crate) balanced: Vec<IpAddr>,
    pub(crate) ports: Vec<PortFacts>,
    pub(crate) has_selector: bool,
    pub(crate) routing: Routing,
    pub(crate) takes_unready: bool,
    pub(crate) created: Arc<str>,
}

/// A TCP port, with the name that ties slices' ports to services'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PortFacts {
    pub(crate) name: Arc<str>,
    pub(crate) number: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SliceFacts {
    pub(crate) name: Name,
    pub(crate) service: Name,
    pub(crate) ports: Vec<PortFacts>,
    pub(crate) endpoints: Vec<EndpointFacts>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EndpointFacts {
    pub(crate) address: IpAddr,
    /// UID of the pod behind the endpoint.
    pub(crate) pod: Option<Arc<str>>,
    pub(crate) node: Option<Arc<str>>,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) ready: bool,
    pub(crate) serving: bool,
}

// === impl ServiceFacts ===

impl ServiceFacts {
    /// Returns `None` for a service that is only a name for something else.
    pub(crate) fn of(service: &Service, names: &mut Interner) -> Option<Self> {
        let ServiceSpec { kind, ports, .. } = &service.spec;
        if kind.as_deref() == Some("ExternalName") {
            return None;
        }
        let spec = &service.spec;
        let ports = ports.iter().filter(|port| is_tcp(port.protocol.as_deref()) && port.port != 0);
        Some(Self {
            name: Name {
                namespace: names.text(&service.metadata.namespace),
                name: names.text(&service.metadata.name),
            },
            addresses: parsed(&spec.cluster_ips),
            balanced: balanced(service),
            ports: ports
                .map(|port| PortFacts { name: names.text(&port.name), number: port.port })
                .collect(),
            has_selector: !spec.selector.is_empty(),
            routing: routing(spec),
            takes_unready: spec.publish_not_ready_addresses,
            created: names.text(&service.metadata.creation_timestamp),
        })
    }
}

fn routing(spec: &ServiceSpec) -> Routing {
    Routing {
        prefer: match spec.traffic_distribution.as_deref() {
            Some("PreferClose" | "PreferSameZone") => Prefer::SameZone,
            Some("PreferSameNode") => Prefer::SameNode,
            _ => Prefer::Any,
        },
        node_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
        sticky: spec.session_affinity.as_deref() == Some("ClientIP"),
    }
}

/// A load balancer's addresses, where nodes short-cut them. Not `externalIPs`: whoever may create a
/// service could claim anybody's address by them.
fn balanced(service: &Service) -> Vec<IpAddr> {
    let ingress = service.status.load_balancer.ingress.iter();
    let short_cut = ingress.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"));
    parsed(short_cut.filter_map(|ingress| ingress.ip.as_ref()))
}

/// What may be a destination among `texts`, each once.
fn parsed<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for text in texts {
        let Ok(address) = text.parse::<IpAddr>() else { continue };
        let address = address.to_canonical();
        if is_unicast(&address) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

// === impl SliceFacts ===

impl SliceFacts {
    /// Returns `None` for a slice without a service, or with names instead of addresses.
    pub(crate) fn of(slice: &EndpointSlice, names: &mut Interner) -> Option<Self> {
        let service = slice.metadata.labels.get(SERVICE_NAME)?;
        if slice.address_type == "FQDN" {
            return None;
        }
        let namespace = names.text(&slice.metadata.namespace);
        let ports = slice.ports.iter().filter(|port| is_tcp(port.protocol.as_deref()));
        Some(Self {
            name: Name { namespace: namespace.clone(), name: slice.metadata.name.as_str().into() },
            service: Name { namespace, name: names.text(service) },
            ports: ports
                .filter_map(|port| {
                    let number = port.port.filter(|number| *number != 0)?;
                    Some(PortFacts { name: names.text(&port.name), number })
                })
                .collect(),
            endpoints: slice
                .endpoints
                .iter()
                .filter_map(|endpoint| EndpointFacts::of(endpoint, names))
                .collect(),
        })
    }

    /// Shares texts that equal others', after the facts were read from disk.
    pub(crate) fn share(&mut self, names: &mut Interner) {
        for name in [&mut self.name, &mut self.service] {
            name.namespace = names.text(&name.namespace);
        }
        self.service.name = names.text(&self.service.name);
        for port in &mut self.ports {
            port.name = names.text(&port.name);
        }
        for endpoint in &mut self.endpoints {
            for text in [&mut endpoint.node, &mut endpoint.zone].into_iter().flatten() {
                *text = names.text(text);
            }
        }
    }
}

// === impl EndpointFacts ===

impl EndpointFacts {
    fn of(endpoint: &SliceEndpoint, names: &mut Interner) -> Option<Self> {
        let address: IpAddr = endpoint.addresses.first()?.parse().ok()?;
        let ready = endpoint.conditions.ready.unwrap_or(true);
        let reference = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod");
        let mut text = |text: &Option<String>| text.as_deref().map(|text| names.text(text));
        Some(Self {
            address: address.to_canonical(),
            node: text(&endpoint.node_name),
            zone: text(&endpoint.zone),
            pod: reference.map(|target| target.uid.as_str().into()),
            ready,
            serving: endpoint.conditions.serving.unwrap_or(ready),
        })
    }
}
