//! Kubernetes objects as far as the mesh is concerned: reading one drops every other field.
//!
//! Field names are those of the Kubernetes API, core/v1 and discovery.k8s.io/v1.

mod network;
mod pod;

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

pub use network::{
    DestinationRule, DestinationRuleSpec, EndpointConditions, EndpointSlice, LoadBalancer,
    LoadBalancerIngress, PortLevel, PortSelector, Service, ServicePortSpec, ServiceSpec,
    ServiceStatus, SliceEndpoint, SlicePort, TargetReference, Tls, TrafficPolicy,
};
pub(crate) use pod::SIDECAR;
pub use pod::{
    CAPTURED, Condition, Container, ContainerPort, GrpcAction, Handler, HttpGet, Lifecycle, Pod,
    PodIp, PodSpec, PodStatus, PortReference, REDIRECTION, TcpSocket,
};

/// The metadata that every object has.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    /// Name, unique in its namespace at one time.
    pub name: String,
    /// Namespace; empty for objects of the whole cluster.
    pub namespace: String,
    /// UID, which is unique over time.
    pub uid: String,
    /// Version of the object, opaque.
    pub resource_version: String,
    /// Counts changes of the spec; 0 for kinds that do not count them.
    pub generation: i64,
    /// When it was created, RFC 3339 in seconds and UTC.
    #[serde(deserialize_with = "or_default")]
    pub creation_timestamp: String,
    /// When deletion was asked for.
    pub deletion_timestamp: Option<String>,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

/// Reads `null`, as some clients write it, like an absent field.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A kind of object.
pub trait Object {
    /// Returns the object's metadata.
    fn meta(&self) -> &Meta;
}

/// A namespace.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Namespace {
    /// Name and labels.
    pub metadata: Meta,
}

/// A node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Node {
    /// Name and labels.
    pub metadata: Meta,
}

/// Who may connect (`security.istio.io`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct AuthorizationPolicy(pub Policy);

/// Which transport is accepted (`security.istio.io`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct PeerAuthentication(pub Policy);

/// A policy, as it was written.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Policy {
    /// Names and annotations.
    pub metadata: Meta,
    /// The policy's spec, not yet read.
    #[serde(default)]
    pub spec: Option<serde_json::Value>,
}

macro_rules! objects {
    ($($kind:ty),*) => {
        $(impl Object for $kind {
            fn meta(&self) -> &Meta {
                &self.metadata
            }
        })*
    };
}

impl Object for AuthorizationPolicy {
    fn meta(&self) -> &Meta {
        &self.0.metadata
    }
}

impl Object for PeerAuthentication {
    fn meta(&self) -> &Meta {
        &self.0.metadata
    }
}

objects!(Namespace, Node, Pod, Service, EndpointSlice, DestinationRule);
