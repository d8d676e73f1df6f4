//! Pods.

use std::net::IpAddr;

use serde::Deserialize;

use super::{Meta, or_default};

/// Istio's annotation of captured pods, which its tools look for.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Ours beside it, on pods that we have captured: Istio's own node agent annotates those that it has.
pub const CAPTURED: &str = "sluice.dev/captured";
/// What Istio's injector writes on a pod that it gives a sidecar.
pub(crate) const SIDECAR: &str = "sidecar.istio.io/status";
/// What the kubelet writes on the mirror of a static pod; the API server lets nobody change it afterwards.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Pod {
    /// Names, labels and annotations.
    pub metadata: Meta,
    /// What the pod is asked to be.
    #[serde(default, deserialize_with = "or_default")]
    pub spec: PodSpec,
    /// What the pod's node reports.
    #[serde(default, deserialize_with = "or_default")]
    pub status: PodStatus,
}

/// What a pod is asked to be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Service account; the API server fills in `default`.
    pub service_account_name: Option<String>,
    /// Node that it is bound to.
    pub node_name: Option<String>,
    /// Whether it uses the node's network namespace.
    #[serde(deserialize_with = "or_default")]
    pub host_network: bool,
    /// Containers.
    #[serde(deserialize_with = "or_default")]
    pub containers: Vec<Container>,
    /// Containers that run first, and sidecars.
    #[serde(deserialize_with = "or_default")]
    pub init_containers: Vec<Container>,
}

/// A container, as far as the kubelet connects to it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// `Always` makes an init container a sidecar, which is probed.
    pub restart_policy: Option<String>,
    /// Ports, for their names.
    #[serde(deserialize_with = "or_default")]
    pub ports: Vec<ContainerPort>,
    /// The probe for whether it may get traffic.
    pub readiness_probe: Option<Handler>,
    /// The probe for whether it is to be restarted.
    pub liveness_probe: Option<Handler>,
    /// The probe for whether it has started.
    pub startup_probe: Option<Handler>,
    /// What the kubelet calls at the container's start and end.
    pub lifecycle: Option<Lifecycle>,
}

/// A port of a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    /// Its name.
    pub name: Option<String>,
    /// Its number.
    pub container_port: u16,
    /// `TCP` when absent.
    pub protocol: Option<String>,
}

/// How the kubelet asks a container; one of the three is set.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Handler {
    /// An HTTP request.
    pub http_get: Option<HttpGet>,
    /// A connection, and nothing more.
    pub tcp_socket: Option<TcpSocket>,
    /// A gRPC health request.
    pub grpc: Option<GrpcAction>,
}

/// A container's hooks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    /// Called after the container's start.
    pub post_start: Option<Handler>,
    /// Called before the container's end.
    pub pre_stop: Option<Handler>,
}

/// An HTTP request of the kubelet's.
#[derive(Clone, Debug, Deserialize)]
pub struct HttpGet {
    /// The port to connect to.
    pub port: PortReference,
    /// The host, if it is not the pod.
    #[serde(default)]
    pub host: Option<String>,
}

/// A connection of the kubelet's.
#[derive(Clone, Debug, Deserialize)]
pub struct TcpSocket {
    /// The port to connect to.
    pub port: PortReference,
    /// The host, if it is not the pod.
    #[serde(default)]
    pub host: Option<String>,
}

/// A gRPC health request of the kubelet's.
#[derive(Clone, Debug, Deserialize)]
pub struct GrpcAction {
    /// The port to connect to.
    pub port: PortReference,
}

/// A port by number, or by the name that a container gives it (`IntOrString`).
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum PortReference {
    /// By number.
    Number(i64),
    /// By name, or by a number in a text.
    Name(String),
}

/// What a node reports of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<String>,
    /// Its addresses.
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub pod_ips: Vec<PodIp>,
    /// Its conditions.
    #[serde(deserialize_with = "or_default")]
    pub conditions: Vec<Condition>,
}

/// One address of a pod.
#[derive(Clone, Debug, Deserialize)]
pub struct PodIp {
    /// The address.
    pub ip: IpAddr,
}

/// One condition of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// The condition's type, such as `Ready`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

// === impl Pod ===

impl Pod {
    /// The UID of a static pod, of which this is the mirror: the kubelet and the runtime know only that one, and the
    /// API server has given the mirror another.
    pub fn static_uid(&self) -> Option<&str> {
        self.metadata.annotations.get(MIRROR).map(String::as_str)
    }
}
