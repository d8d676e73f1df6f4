//! Services and the slices of their endpoints.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use sluice_mesh::{Endpoint, Endpoints, Service, ServicePort, WorkloadUid};

use super::pods::Pods;
use crate::{
    Finding, Meaning, ObjectName,
    facts::{Name, PortFacts, ServiceFacts, SliceFacts},
    intern::Interner,
};

#[derive(Debug, Default)]
pub(crate) struct Services {
    facts: BTreeMap<Name, ServiceFacts>,
    slices: BTreeMap<Name, SliceFacts>,
    /// Names of the slices of each service, known or not.
    slices_of: HashMap<Name, BTreeSet<Name>>,
    built: BTreeMap<Name, Arc<Service>>,
    dirty: BTreeSet<Name>,
}

// === impl Services ===

impl Services {
    pub(crate) fn keep(&mut self, facts: ServiceFacts) {
        if self.facts.get(&facts.name) != Some(&facts) {
            self.dirty.insert(facts.name.clone());
            self.facts.insert(facts.name.clone(), facts);
        }
    }

    pub(crate) fn forget(&mut self, name: &Name) {
        if self.facts.remove(name).is_some() {
            self.dirty.insert(name.clone());
        }
    }

    pub(crate) fn retain(&mut self, listed: impl Fn(&Name) -> bool) {
        let gone: Vec<_> = self.facts.keys().filter(|name| !listed(name)).cloned().collect();
        for name in gone {
            self.forget(&name);
        }
    }

    pub(crate) fn keep_slice(&mut self, facts: SliceFacts) {
        if self.slices.get(&facts.name) == Some(&facts) {
            return;
        }
        self.forget_slice(&facts.name.clone());
        self.dirty.insert(facts.service.clone());
        self.slices_of.entry(facts.service.clone()).or_default().insert(facts.name.clone());
        self.slices.insert(facts.name.clone(), facts);
    }

    pub(crate) fn forget_slice(&mut self, name: &Name) {
        let Some(facts) = self.slices.remove(name) else { return };
        if let Some(slices) = self.slices_of.get_mut(&facts.service) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices_of.remove(&facts.service);
            }
        }
        self.dirty.insert(facts.service);
    }

    pub(crate) fn retain_slices(&mut self, listed: impl Fn(&Name) -> bool) {
        let gone: Vec<_> = self.slices.keys().filter(|name| !listed(name)).cloned().collect();
        for name in gone {
            self.forget_slice(&name);
        }
    }

    pub(crate) fn touch_namespace(&mut self, namespace: &str) {
        let inside = self.facts.keys().filter(|name| &*name.namespace == namespace);
        self.dirty.extend(inside.cloned());
    }

    /// A pod of its node's network came or went, and may be behind an endpoint.
    pub(crate) fn touch_endpoint(&mut self, uid: &str) {
        let has = |slice: &&SliceFacts| {
            slice.endpoints.iter().any(|endpoint| endpoint.pod.as_deref() == Some(uid))
        };
        let services = self.slices.values().filter(has).map(|slice| slice.service.clone());
        self.dirty.extend(services);
    }

    /// Makes anew what has changed; answers whether anything has.
    pub(crate) fn refresh(
        &mut self,
        pods: &Pods,
        is_enrolled: &impl Fn(&str) -> bool,
        names: &mut Interner,
    ) -> bool {
        let mut changed = false;
        for name in std::mem::take(&mut self.dirty) {
            let Some(facts) = self.facts.get(&name) else {
                changed |= self.built.remove(&name).is_some();
                continue;
            };
            let in_mesh = facts.has_selector && is_enrolled(&name.namespace);
            let service = self.service(facts, pods, in_mesh, names);
            if self.built.get(&name).is_none_or(|old| **old != service) {
                self.built.insert(name, Arc::new(service));
                changed = true;
            }
        }
        changed
    }

    fn service(
        &self,
        facts: &ServiceFacts,
        pods: &Pods,
        in_mesh: bool,
        names: &mut Interner,
    ) -> Service {
        let slices = self.slices_of.get(&facts.name).into_iter().flatten();
        let mut endpoints = Vec::new();
        let mut serving = Vec::new();
        for slice in slices.filter_map(|name| self.slices.get(name)) {
            let ports = names.ports(targets(facts, slice));
            for endpoint in &slice.endpoints {
                serving.push(endpoint.serving);
                let pod = endpoint.pod.as_ref().filter(|uid| !pods.is_host_pod(uid));
                endpoints.push(Endpoint {
                    address: endpoint.address,
                    workload: pod.map(|uid| pods.uid(uid).unwrap_or(WorkloadUid(Arc::clone(uid)))),
                    node: endpoint.node.clone(),
                    zone: endpoint.zone.clone(),
                    ready: endpoint.ready || facts.takes_unready,
                    ports: Arc::clone(&ports),
                });
            }
        }
        // As kube-proxy does: while nothing is ready, what is terminating and still serves will do.
        if !endpoints.iter().any(|endpoint| endpoint.ready) {
            for (endpoint, serves) in endpoints.iter_mut().zip(serving) {
                endpoint.ready = serves;
            }
        }
        let port = |port: &PortFacts| ServicePort { port: port.number, target_port: port.number };
        Service {
            name: facts.name.name.to_string(),
            namespace: facts.name.namespace.to_string(),
            addresses: facts.addresses.clone(),
            ports: facts.ports.iter().map(port).collect(),
            endpoints: Endpoints::Listed(endpoints),
            routing: facts.routing,
            in_mesh,
        }
    }

    /// The services that may have the addresses that they claim; of two with one address, as when one was
    /// deleted and its event is late, the newer.
    pub(crate) fn accepted(&self, pods: &Pods, findings: &mut Vec<Finding>) -> Vec<Arc<Service>> {
        let created = |name: &Name| self.facts.get(name).map(|facts| Arc::clone(&facts.created));
        let mut owners: HashMap<IpAddr, &Name> = HashMap::with_capacity(self.built.len());
        for (name, service) in &self.built {
            for address in &service.addresses {
                let owner = owners.entry(*address).or_insert(name);
                if created(name) > created(owner) {
                    *owner = name;
                }
            }
        }
        let mut accept = |(name, service): (&Name, &Arc<Service>)| {
            let mut taken = Vec::new();
            for address in &service.addresses {
                let pod = pods.claimant(*address).map(|pod| format!("pod {pod}"));
                let other = owners.get(address).filter(|owner| **owner != name);
                let other =
                    other.map(|owner| format!("service {}/{}", owner.namespace, owner.name));
                if let Some(owner) = pod.or(other) {
                    taken.push(*address);
                    let object = ObjectName {
                        kind: "Service",
                        namespace: Arc::clone(&name.namespace),
                        name: Arc::clone(&name.name),
                    };
                    let meaning = Meaning::ServiceAddressTaken { address: *address, owner };
                    findings.push(Finding::new(object, "spec.clusterIPs", meaning));
                }
            }
            if taken.is_empty() {
                return Arc::clone(service);
            }
            let mut service = Service::clone(service);
            service.addresses.retain(|address| !taken.contains(address));
            Arc::new(service)
        };
        self.built.iter().map(&mut accept).collect()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &ServiceFacts> {
        self.facts.values()
    }

    pub(crate) fn all_slices(&self) -> impl Iterator<Item = &SliceFacts> {
        self.slices.values()
    }
}

/// Where the service's ports lead on the endpoints of a slice: the two are tied by the ports' names.
fn targets(service: &ServiceFacts, slice: &SliceFacts) -> Vec<ServicePort> {
    let target = |offered: &PortFacts| {
        let port = slice.ports.iter().find(|port| port.name == offered.name)?;
        Some(ServicePort { port: offered.number, target_port: port.number })
    };
    service.ports.iter().filter_map(target).collect()
}
