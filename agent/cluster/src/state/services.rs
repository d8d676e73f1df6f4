//! Services and the slices of their endpoints.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
    net::{IpAddr, SocketAddr},
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
    /// Names of the slices of each service, whether the service is known or not.
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

    /// Marks the services that have this pod behind an endpoint, because it uses its node's network and came or went.
    pub(crate) fn touch_endpoint(&mut self, uid: &str) {
        let has = |slice: &&SliceFacts| {
            slice.endpoints.iter().any(|endpoint| endpoint.pod.as_deref() == Some(uid))
        };
        let services = self.slices.values().filter(has).map(|slice| slice.service.clone());
        self.dirty.extend(services);
    }

    /// Rebuilds the services that have changed. Returns whether any is different now.
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
        for slice in slices.filter_map(|name| self.slices.get(name)) {
            let ports = names.ports(targets(facts, slice));
            for endpoint in &slice.endpoints {
                let pod = endpoint.pod.as_ref().filter(|uid| !pods.is_host_pod(uid));
                endpoints.push(Endpoint {
                    address: endpoint.address,
                    workload: pod.map(|uid| pods.uid(uid).unwrap_or(WorkloadUid(Arc::clone(uid)))),
                    node: endpoint.node.clone(),
                    zone: endpoint.zone.clone(),
                    ready: endpoint.ready || facts.takes_unready,
                    serving: endpoint.serving,
                    ports: Arc::clone(&ports),
                });
            }
        }
        let at =
            |address: IpAddr| facts.ports.iter().map(move |port| (address, port.number).into());
        let balanced: BTreeSet<SocketAddr> =
            facts.balanced.iter().flat_map(|address| at(*address)).collect();
        let port = |port: &PortFacts| ServicePort { port: port.number, target_port: port.number };
        Service {
            name: facts.name.name.to_string(),
            namespace: facts.name.namespace.to_string(),
            addresses: facts.addresses.clone(),
            balanced: balanced.into_iter().collect(),
            ports: facts.ports.iter().map(port).collect(),
            endpoints: Endpoints::Listed(endpoints),
            routing: facts.routing,
            in_mesh,
        }
    }

    /// The services that may have the addresses that they claim; of two with one address, as when one was
    /// deleted and its event is late, the newer. At load balancers' addresses that goes for each port.
    pub(crate) fn accepted(&self, pods: &Pods, findings: &mut Vec<Finding>) -> Vec<Arc<Service>> {
        let own = self.owners(|service| &service.addresses);
        let shared = self.owners(|service| &service.balanced);
        let accept = |(name, service): (&Name, &Arc<Service>)| {
            let other = |owner: Option<&&Name>| {
                let Name { namespace, name } = owner.filter(|owner| **owner != name)?;
                Some(format!("service {namespace}/{name}"))
            };
            let owner = |address: &IpAddr| {
                let pod = pods.claimant(*address).map(|pod| format!("pod {pod}"));
                pod.or_else(|| other(own.get(address)))
            };
            let owner_of_port = |at: &SocketAddr| owner(&at.ip()).or_else(|| other(shared.get(at)));
            let addresses = taken(&service.addresses, owner);
            let balanced = taken(&service.balanced, owner_of_port);
            if addresses.is_empty() && balanced.is_empty() {
                return Arc::clone(service);
            }
            let mut service = Service::clone(service);
            service.addresses.retain(|address| !addresses.contains_key(address));
            service.balanced.retain(|at| !balanced.contains_key(at));
            let mut remark = |field, meaning| {
                let Name { namespace, name } = name.clone();
                let object = ObjectName { kind: "Service", namespace, name };
                findings.push(Finding::new(object, field, meaning));
            };
            for (address, owner) in addresses {
                remark("spec.clusterIPs", Meaning::ServiceAddressTaken { address, owner });
            }
            for (address, owner) in balanced {
                let meaning = Meaning::ServicePortTaken { address, owner };
                remark("status.loadBalancer.ingress", meaning);
            }
            Arc::new(service)
        };
        self.built.iter().map(accept).collect()
    }

    /// The newest claimant of each of what services `claim`.
    fn owners<T: Copy + Eq + Hash>(&self, claim: impl Fn(&Service) -> &[T]) -> HashMap<T, &Name> {
        let created = |name: &Name| self.facts.get(name).map(|facts| Arc::clone(&facts.created));
        let mut owners: HashMap<T, &Name> = HashMap::with_capacity(self.built.len());
        for (name, service) in &self.built {
            for claimed in claim(service) {
                let owner = owners.entry(*claimed).or_insert(name);
                if created(name) > created(owner) {
                    *owner = name;
                }
            }
        }
        owners
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &ServiceFacts> {
        self.facts.values()
    }

    pub(crate) fn all_slices(&self) -> impl Iterator<Item = &SliceFacts> {
        self.slices.values()
    }
}

/// What of `claims` is somebody else's, and whose.
fn taken<T: Copy + Ord>(claims: &[T], owner: impl Fn(&T) -> Option<String>) -> BTreeMap<T, String> {
    claims.iter().filter_map(|claimed| Some((*claimed, owner(claimed)?))).collect()
}

/// Where the service's ports lead on the endpoints of a slice: the two are tied by the ports' names.
fn targets(service: &ServiceFacts, slice: &SliceFacts) -> Vec<ServicePort> {
    let target = |offered: &PortFacts| {
        let port = slice.ports.iter().find(|port| port.name == offered.name)?;
        Some(ServicePort { port: offered.number, target_port: port.number })
    };
    service.ports.iter().filter_map(target).collect()
}
