//! Services: virtual addresses in front of workloads.

use std::{collections::BTreeMap, net::IpAddr};

/// A Kubernetes Service, or the file source's equivalent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Service name.
    pub name: String,
    /// Its namespace; endpoints are workloads of the same one.
    pub namespace: String,
    /// Virtual addresses, at most one of each family in Kubernetes.
    pub addresses: Vec<IpAddr>,
    /// Ports that it offers.
    pub ports: Vec<ServicePort>,
    /// Labels that an endpoint carries; empty selects nothing, as in Kubernetes.
    pub selector: BTreeMap<String, String>,
}

/// One offered port and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port of the virtual address.
    pub port: u16,
    /// Port of the endpoint.
    pub target_port: u16,
}

impl Service {
    /// Where `port` leads; `None` when the service does not offer it.
    pub fn target_port(&self, port: u16) -> Option<u16> {
        self.ports.iter().find(|offered| offered.port == port).map(|offered| offered.target_port)
    }

    /// Whether a workload with these labels, in this namespace, is an endpoint.
    pub fn selects(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        namespace == self.namespace
            && !self.selector.is_empty()
            && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    }
}
