//! The whole mesh at one moment, indexed for the questions that a connection asks.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use sluice_policy::{PolicySet, WorkloadPolicy};
use sluice_spiffe::TrustDomain;

use crate::{Service, Workload, WorkloadUid};

/// A workload with the policies that bind it.
#[derive(Debug)]
pub struct Member {
    /// The pod.
    pub workload: Workload,
    /// What its agent enforces on connections to it.
    pub policy: WorkloadPolicy,
}

/// Where a connection to some address goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// To a known pod, at this address.
    Member(Arc<Member>, SocketAddr),
    /// To a service that has no ready endpoint of the address family, or not this port.
    NoEndpoint(Arc<Service>),
    /// To something that the mesh does not know.
    Unknown,
}

/// Why a snapshot was refused; whatever was in force stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// Two pods claim one address, so neither can be trusted with it.
    #[error("address {address} belongs to both {first} and {second}: give each pod its own")]
    AddressClash {
        /// The address in question.
        address: IpAddr,
        /// The pod that had it first.
        first: WorkloadUid,
        /// The pod that claims it too.
        second: WorkloadUid,
    },
    /// Two pods carry the same unique name.
    #[error("{0} is listed twice: a pod's namespace and name are unique")]
    UidClash(WorkloadUid),
    /// A service claims an address that a pod or another service has.
    #[error("service {namespace}/{name} claims {address}, which is taken: give it its own address")]
    ServiceClash {
        /// The service's namespace.
        namespace: String,
        /// The service's name.
        name: String,
        /// The address in question.
        address: IpAddr,
    },
}

/// Collects what a source knows, then checks and indexes it.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    /// Every pod.
    pub workloads: Vec<Workload>,
    /// Every service.
    pub services: Vec<Service>,
    /// Compiled policies.
    pub policies: PolicySet,
}

/// The whole mesh at one moment. Immutable: a change is a new snapshot.
#[derive(Debug)]
pub struct Snapshot {
    trust_domain: TrustDomain,
    members: Vec<Arc<Member>>,
    by_address: HashMap<IpAddr, Arc<Member>>,
    by_uid: HashMap<WorkloadUid, Arc<Member>>,
    services: Vec<Arc<Service>>,
    by_virtual_address: HashMap<IpAddr, Arc<IndexedService>>,
    policies: PolicySet,
}

#[derive(Debug)]
struct IndexedService {
    service: Arc<Service>,
    endpoints: Vec<Arc<Member>>,
}

// === impl SnapshotBuilder ===

impl SnapshotBuilder {
    /// Checks and indexes everything collected.
    ///
    /// # Errors
    ///
    /// When an address or a unique name is claimed twice.
    pub fn build(self, trust_domain: TrustDomain) -> Result<Snapshot, BuildError> {
        let mut snapshot = Snapshot::empty(trust_domain);
        for workload in self.workloads {
            let policy = self.policies.for_workload(&workload.account.namespace, &workload.labels);
            snapshot.add_member(Arc::new(Member { workload, policy }))?;
        }
        for service in self.services {
            snapshot.add_service(Arc::new(service))?;
        }
        snapshot.policies = self.policies;
        Ok(snapshot)
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// A mesh without pods: what an agent starts from.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            members: Vec::new(),
            by_address: HashMap::new(),
            by_uid: HashMap::new(),
            services: Vec::new(),
            by_virtual_address: HashMap::new(),
            policies: PolicySet::default(),
        }
    }

    fn add_member(&mut self, member: Arc<Member>) -> Result<(), BuildError> {
        let uid = member.workload.uid.clone();
        for address in &member.workload.addresses {
            if let Some(first) = self.by_address.insert(*address, Arc::clone(&member)) {
                return Err(BuildError::AddressClash {
                    address: *address,
                    first: first.workload.uid.clone(),
                    second: uid,
                });
            }
        }
        if self.by_uid.insert(uid.clone(), Arc::clone(&member)).is_some() {
            return Err(BuildError::UidClash(uid));
        }
        self.members.push(member);
        Ok(())
    }

    fn add_service(&mut self, service: Arc<Service>) -> Result<(), BuildError> {
        let selected = |member: &&Arc<Member>| {
            service.selects(&member.workload.account.namespace, &member.workload.labels)
        };
        let endpoints = self.members.iter().filter(selected).cloned().collect();
        let indexed = Arc::new(IndexedService { service: Arc::clone(&service), endpoints });
        for address in &service.addresses {
            let clash = self.by_address.contains_key(address)
                || self.by_virtual_address.insert(*address, Arc::clone(&indexed)).is_some();
            if clash {
                return Err(BuildError::ServiceClash {
                    namespace: service.namespace.clone(),
                    name: service.name.clone(),
                    address: *address,
                });
            }
        }
        self.services.push(service);
        Ok(())
    }

    /// The trust domain of this mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Every pod.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Every service.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// The policies in force.
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// The pod with this address.
    pub fn member_at(&self, address: IpAddr) -> Option<&Arc<Member>> {
        self.by_address.get(&address)
    }

    /// The pod with this unique name.
    pub fn member(&self, uid: &WorkloadUid) -> Option<&Arc<Member>> {
        self.by_uid.get(uid)
    }

    /// The service with this virtual address.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.by_virtual_address.get(&address).map(|indexed| &indexed.service)
    }

    /// Where a connection to `target` goes. `turn` chooses among a service's endpoints: callers count
    /// it up, so that consecutive connections spread evenly.
    pub fn resolve(&self, target: SocketAddr, turn: usize) -> Destination {
        if let Some(member) = self.by_address.get(&target.ip()) {
            return Destination::Member(Arc::clone(member), target);
        }
        let Some(indexed) = self.by_virtual_address.get(&target.ip()) else {
            return Destination::Unknown;
        };
        indexed
            .choose(target, turn)
            .unwrap_or_else(|| Destination::NoEndpoint(Arc::clone(&indexed.service)))
    }

    /// Addresses to which an enrolled pod may speak only through the mesh: those of every enrolled
    /// pod, and of every service that has one among its endpoints.
    pub fn protected_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let pods = self.members.iter().filter(|member| member.workload.in_mesh);
        let services = self
            .by_virtual_address
            .iter()
            .filter(|(_, indexed)| indexed.endpoints.iter().any(|member| member.workload.in_mesh));
        pods.flat_map(|member| member.workload.addresses.iter().copied())
            .chain(services.map(|(address, _)| *address))
    }
}

impl IndexedService {
    fn choose(&self, target: SocketAddr, turn: usize) -> Option<Destination> {
        let port = self.service.target_port(target.port())?;
        let ipv6 = target.is_ipv6();
        let usable = |member: &&Arc<Member>| {
            member.workload.ready && member.workload.primary_address(ipv6).is_some()
        };
        let count = self.endpoints.iter().filter(usable).count();
        let member = self.endpoints.iter().filter(usable).nth(turn.checked_rem(count)?)?;
        let address = member.workload.primary_address(ipv6)?;
        Some(Destination::Member(Arc::clone(member), SocketAddr::new(address, port)))
    }
}

#[cfg(test)]
mod tests;
