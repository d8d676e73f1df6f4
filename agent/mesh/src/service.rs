//! Services: virtual addresses in front of endpoints.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::WorkloadUid;

/// A Kubernetes Service, or the file source's equivalent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Service name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Virtual addresses, at most one of each family in Kubernetes: the service's own on every port.
    pub addresses: Vec<IpAddr>,
    /// Where load balancers offer it. Their addresses are the service's on these ports only: on others
    /// there may be other services, or whatever a node offers that lends its address.
    pub balanced: Vec<SocketAddr>,
    /// Ports that it offers.
    pub ports: Vec<ServicePort>,
    /// The endpoints behind it.
    pub endpoints: Endpoints,
    /// Which of the endpoints a client is sent to.
    pub routing: Routing,
    /// Whether clients reach it through the mesh even while it has no endpoint in the mesh. If so, a service that has
    /// just lost its last pod refuses connections instead of leaving the mesh.
    pub in_mesh: bool,
}

/// A port that a service offers, and the endpoint's port that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Port of the virtual address.
    pub port: u16,
    /// Port of the endpoint.
    pub target_port: u16,
}

/// The endpoints behind a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// The workloads of the service's namespace with these labels, on the service's own target ports;
    /// empty selects nothing, as in Kubernetes.
    Selected(BTreeMap<String, String>),
    /// Exactly these, as `EndpointSlice`s list them.
    Listed(Vec<Endpoint>),
}

/// One endpoint of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is reached.
    pub address: IpAddr,
    /// The pod that the source knows behind the address. If the mesh has no such pod, or that pod has another
    /// address, no client is sent here.
    pub workload: Option<WorkloadUid>,
    /// Name of its node.
    pub node: Option<Arc<str>>,
    /// Zone of its node.
    pub zone: Option<Arc<str>>,
    /// Whether clients may be sent to it.
    pub ready: bool,
    /// Whether it still answers while it is not ready, as one that terminates does: clients are sent to
    /// it when none is ready.
    pub serving: bool,
    /// Where each port that the service offers leads at this endpoint; a port that is not here is not
    /// offered by it.
    pub ports: Arc<[ServicePort]>,
}

/// Which of its endpoints a service sends a client to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    /// Which endpoints are taken first (`trafficDistribution`).
    pub prefer: Prefer,
    /// Only endpoints on the client's node (`internalTrafficPolicy: Local`).
    pub node_only: bool,
    /// Every connection of one client address goes to one endpoint (`sessionAffinity: ClientIP`).
    pub sticky: bool,
}

/// Which endpoints are taken first, while any of them is ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prefer {
    /// No preference.
    #[default]
    Any,
    /// Those of the client's zone.
    SameZone,
    /// Those of the client's node, then those of its zone.
    SameNode,
}

// === impl Service ===

impl Service {
    /// Returns the port that `port` leads to, or `None` if the service does not offer it.
    pub fn target_port(&self, port: u16) -> Option<u16> {
        self.ports.iter().find(|offered| offered.port == port).map(|offered| offered.target_port)
    }

    /// Where clients find `port`, on the service's own addresses and on load balancers'.
    pub fn reached_at(&self, port: u16) -> impl Iterator<Item = SocketAddr> {
        let own = self.addresses.iter().map(move |address| SocketAddr::new(*address, port));
        own.chain(self.balanced.iter().copied().filter(move |balanced| balanced.port() == port))
    }
}

// === impl Endpoints ===

impl Default for Endpoints {
    fn default() -> Self {
        Self::Listed(Vec::new())
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// Returns the port of this endpoint that `port` of the service leads to, or `None` if it does not offer it.
    pub fn target_port(&self, port: u16) -> Option<u16> {
        self.ports.iter().find(|offered| offered.port == port).map(|offered| offered.target_port)
    }
}
