//! Services, their endpoints, and rules about reaching them.

use serde::Deserialize;

use super::{Meta, or_default};

/// A service.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Service {
    /// Names and annotations.
    pub metadata: Meta,
    /// What the service offers.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: ServiceSpec,
    /// What the cluster made of the service.
    #[serde(default, deserialize_with = "or_default")]
    pub status: ServiceStatus,
}

/// What a service offers.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    /// `ClusterIP`, `NodePort`, `LoadBalancer` or `ExternalName`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Virtual addresses; `None` for a headless service.
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub cluster_ips: Vec<String>,
    /// Ports.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ServicePortSpec>,
    /// Labels of its pods.
    #[serde(deserialize_with = "or_default")]
    pub selector: std::collections::BTreeMap<String, String>,
    /// `Cluster` or `Local`.
    pub internal_traffic_policy: Option<String>,
    /// `PreferClose`, `PreferSameZone` or `PreferSameNode`.
    pub traffic_distribution: Option<String>,
    /// `None` or `ClientIP`.
    pub session_affinity: Option<String>,
    /// Whether endpoints count before they are ready.
    #[serde(deserialize_with = "or_default")]
    pub publish_not_ready_addresses: bool,
}

/// A port of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServicePortSpec {
    /// The port's name, by which slices refer to it.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Its number.
    pub port: u16,
    /// `TCP` when absent.
    pub protocol: Option<String>,
}

/// What the cluster made of a service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    /// Its load balancer.
    #[serde(deserialize_with = "or_default")]
    pub load_balancer: LoadBalancer,
}

/// A service's load balancer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct LoadBalancer {
    /// The addresses at which it listens.
    #[serde(deserialize_with = "or_default")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// An entrance of a load balancer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerIngress {
    /// Its address.
    pub ip: Option<String>,
    /// `Proxy` when nodes must not short-cut it.
    pub ip_mode: Option<String>,
}

/// A slice of a service's endpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Names, and the service in the label `kubernetes.io/service-name`.
    pub metadata: Meta,
    /// `IPv4`, `IPv6` or `FQDN`.
    #[serde(default)]
    pub address_type: String,
    /// Endpoints.
    #[serde(default, deserialize_with = "or_default")]
    pub endpoints: Vec<SliceEndpoint>,
    /// Their ports.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<SlicePort>,
}

/// An endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SliceEndpoint {
    /// Addresses; only the first counts, as Kubernetes says.
    #[serde(deserialize_with = "or_default")]
    pub addresses: Vec<String>,
    /// Whether it takes connections.
    #[serde(deserialize_with = "or_default")]
    pub conditions: EndpointConditions,
    /// Its node.
    pub node_name: Option<String>,
    /// Its zone.
    pub zone: Option<String>,
    /// The object behind the endpoint.
    pub target_ref: Option<TargetReference>,
}

/// Whether an endpoint takes connections.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct EndpointConditions {
    /// Whether it is ready; absent means yes.
    pub ready: Option<bool>,
    /// Whether it would be ready if it were not terminating; if absent, the same as `ready`.
    pub serving: Option<bool>,
}

/// The object behind an endpoint.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct TargetReference {
    /// The object's kind, such as `Pod`.
    pub kind: String,
    /// Its UID.
    pub uid: String,
}

/// A port of a slice's endpoints.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SlicePort {
    /// Name of the service's port.
    #[serde(deserialize_with = "or_default")]
    pub name: String,
    /// Number at the endpoint.
    pub port: Option<u16>,
    /// `TCP` when absent.
    pub protocol: Option<String>,
}

/// A rule about clients of a host (`networking.istio.io`).
#[derive(Clone, Debug, Default, Deserialize)]
pub struct DestinationRule {
    /// Names.
    pub metadata: Meta,
    /// What the rule says.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: DestinationRuleSpec,
}

/// What a `DestinationRule` says, as far as it concerns TLS.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DestinationRuleSpec {
    /// The host: a service's short name or its DNS name.
    pub host: String,
    /// How the host is reached.
    pub traffic_policy: Option<TrafficPolicy>,
    /// The clients that the rule is for.
    pub workload_selector: Option<serde::de::IgnoredAny>,
}

/// How a host is reached.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TrafficPolicy {
    /// TLS on every port.
    pub tls: Option<Tls>,
    /// Settings of single ports, each of which replaces `tls` on its port.
    #[serde(deserialize_with = "or_default")]
    pub port_level_settings: Vec<PortLevel>,
}

/// Settings of one port.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PortLevel {
    /// The service's port.
    pub port: Option<PortSelector>,
    /// TLS on that port.
    pub tls: Option<Tls>,
}

/// A port by number.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PortSelector {
    /// The number.
    pub number: u32,
}

/// TLS towards a host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Tls {
    /// `DISABLE`, `SIMPLE`, `MUTUAL` or `ISTIO_MUTUAL`.
    #[serde(deserialize_with = "or_default")]
    pub mode: String,
}
