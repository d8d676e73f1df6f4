//! The whole mesh at one moment, indexed for the questions that a connection asks.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use sluice_policy::{PolicySet, WorkloadPolicy};
use sluice_spiffe::{SpiffeId, TrustDomain};

use crate::{
    BuildError, Bypass, Client, Endpoint, Endpoints, Lack, Service, ServicePort, Workload,
    WorkloadUid, choice::choose,
};

/// A workload with the policies that bind it.
#[derive(Debug)]
pub struct Member {
    /// The pod.
    pub workload: Arc<Workload>,
    /// The policies that its agent enforces on connections to it.
    pub policy: WorkloadPolicy,
}

/// Where a connection to some address goes.
#[derive(Clone, Debug)]
pub enum Destination {
    /// To a known pod, at this address.
    Member(Arc<Member>, SocketAddr),
    /// To a service's endpoint that is not a known pod, at this address, in plaintext.
    Outside(SocketAddr),
    /// Nowhere: the service has no endpoint that may take it.
    NoEndpoint(Arc<Service>, Lack),
    /// Nowhere: for this reason, the owner of the address is unknown.
    Disputed(Arc<str>),
    /// To something that the mesh does not know.
    Unknown,
}

/// Collects what a source knows, then checks and indexes it.
#[derive(Debug, Default)]
pub struct SnapshotBuilder {
    /// New pods, which `policies` will bind.
    pub workloads: Vec<Workload>,
    /// Pods that the source has already bound to their policies, such as those of an earlier snapshot.
    pub members: Vec<Arc<Member>>,
    /// Every service.
    pub services: Vec<Arc<Service>>,
    /// Compiled policies.
    pub policies: PolicySet,
    /// Addresses whose owner is not known for sure, and why: connections to them and plaintext from them are refused.
    pub disputed: HashMap<IpAddr, Arc<str>>,
    /// Destinations that clients reach without the mesh.
    pub direct: HashSet<SocketAddr>,
    /// Whether this state was remembered by an earlier run and may lack what has happened since.
    pub provisional: bool,
    /// Whether the mesh is being taken down: no pod belongs to it any more.
    pub leaving: bool,
}

/// The whole mesh at one moment. Immutable: a change is a new snapshot.
#[derive(Debug)]
pub struct Snapshot {
    trust_domain: TrustDomain,
    members: Vec<Arc<Member>>,
    by_address: HashMap<IpAddr, Position>,
    by_uid: HashMap<WorkloadUid, Position>,
    services: Vec<Arc<Service>>,
    by_virtual_address: HashMap<IpAddr, Arc<IndexedService>>,
    balanced: HashMap<SocketAddr, Arc<IndexedService>>,
    policies: PolicySet,
    disputed: HashMap<IpAddr, Arc<str>>,
    direct: HashSet<SocketAddr>,
    provisional: bool,
    leaving: bool,
}

/// Index of a member in `Snapshot::members`.
type Position = usize;

#[derive(Debug)]
struct IndexedService {
    service: Arc<Service>,
    /// The endpoints, if the service selects them by labels; otherwise empty.
    selected: Vec<Endpoint>,
    in_mesh: bool,
}

// === impl SnapshotBuilder ===

impl SnapshotBuilder {
    /// Checks and indexes everything collected.
    ///
    /// # Errors
    ///
    /// When an address or a unique name is claimed twice.
    pub fn build(self, trust_domain: TrustDomain) -> Result<Snapshot, BuildError> {
        let count = self.workloads.len() + self.members.len();
        let mut snapshot = Snapshot {
            members: Vec::with_capacity(count),
            by_address: HashMap::with_capacity(count),
            by_uid: HashMap::with_capacity(count),
            ..Snapshot::empty(trust_domain)
        };
        for member in self.members {
            snapshot.add_member(member)?;
        }
        for workload in self.workloads {
            let policy = self.policies.for_workload(&workload.account.namespace, &workload.labels);
            snapshot.add_member(Arc::new(Member { workload: Arc::new(workload), policy }))?;
        }
        for service in self.services {
            snapshot.add_service(service)?;
        }
        snapshot.policies = self.policies;
        snapshot.disputed = self.disputed;
        snapshot.direct = self.direct;
        snapshot.provisional = self.provisional;
        snapshot.leaving = self.leaving;
        Ok(snapshot)
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// Returns a mesh without pods, from which an agent starts.
    pub fn empty(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            members: Vec::new(),
            by_address: HashMap::new(),
            by_uid: HashMap::new(),
            services: Vec::new(),
            by_virtual_address: HashMap::new(),
            balanced: HashMap::new(),
            policies: PolicySet::default(),
            disputed: HashMap::new(),
            direct: HashSet::new(),
            provisional: false,
            leaving: false,
        }
    }

    fn add_member(&mut self, member: Arc<Member>) -> Result<(), BuildError> {
        let uid = &member.workload.uid;
        let position = self.members.len();
        for address in &member.workload.addresses {
            if let Some(first) = self.by_address.insert(*address, position) {
                let first = self.members.get(first).map_or(uid, |first| &first.workload.uid);
                return Err(BuildError::AddressClash {
                    address: *address,
                    first: first.clone(),
                    second: uid.clone(),
                });
            }
        }
        if self.by_uid.insert(uid.clone(), position).is_some() {
            return Err(BuildError::UidClash(uid.clone()));
        }
        self.members.push(member);
        Ok(())
    }

    fn add_service(&mut self, service: Arc<Service>) -> Result<(), BuildError> {
        let indexed = Arc::new(self.indexed(Arc::clone(&service)));
        let clash = |address| BuildError::ServiceClash {
            namespace: service.namespace.clone(),
            name: service.name.clone(),
            address,
        };
        for address in &service.addresses {
            if self.by_address.contains_key(address)
                || self.by_virtual_address.insert(*address, Arc::clone(&indexed)).is_some()
            {
                return Err(clash(*address));
            }
        }
        for balanced in &service.balanced {
            if self.by_address.contains_key(&balanced.ip())
                || self.balanced.insert(*balanced, Arc::clone(&indexed)).is_some()
            {
                return Err(clash(balanced.ip()));
            }
        }
        self.services.push(service);
        Ok(())
    }

    fn indexed(&self, service: Arc<Service>) -> IndexedService {
        let selected = match &service.endpoints {
            Endpoints::Selected(labels) => self.selected(&service, labels),
            Endpoints::Listed(_) => Vec::new(),
        };
        let mut indexed = IndexedService { service, selected, in_mesh: false };
        let is_of_mesh = |endpoint: &Endpoint| {
            self.member_behind(endpoint).is_some_and(|member| member.workload.in_mesh)
        };
        indexed.in_mesh = indexed.service.in_mesh || indexed.endpoints().iter().any(is_of_mesh);
        indexed
    }

    fn selected(&self, service: &Service, labels: &BTreeMap<String, String>) -> Vec<Endpoint> {
        let ports: Arc<[ServicePort]> = service.ports.as_slice().into();
        let is_selected = |workload: &&Workload| {
            workload.account.namespace == service.namespace
                && !labels.is_empty()
                && labels.iter().all(|(key, value)| workload.labels.get(key) == Some(value))
        };
        let endpoint = |workload: &Workload, address| Endpoint {
            address,
            workload: Some(workload.uid.clone()),
            node: Some(workload.node.as_str().into()),
            zone: workload.zone.as_deref().map(Into::into),
            ready: workload.ready,
            serving: workload.ready,
            ports: Arc::clone(&ports),
        };
        self.members
            .iter()
            .map(|member| &*member.workload)
            .filter(is_selected)
            .flat_map(|workload| {
                let families = [false, true].map(|ipv6| workload.primary_address(ipv6));
                families.into_iter().flatten().map(move |address| endpoint(workload, address))
            })
            .collect()
    }

    /// Returns whether this state was remembered by an earlier run, because its source cannot be asked. Pods and
    /// peers that it lacks may still be in the mesh, so it must not be used to take any out.
    pub fn is_provisional(&self) -> bool {
        self.provisional
    }

    /// Returns whether the mesh is being taken down. Capture must end before such a snapshot is in force, because
    /// what a captured pod sends would then leave as plaintext.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Returns the trust domain of this mesh.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Returns every pod.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.members
    }

    /// Every service.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// Returns the policies in force.
    pub fn policies(&self) -> &PolicySet {
        &self.policies
    }

    /// Returns the pod with this address.
    pub fn member_at(&self, address: IpAddr) -> Option<&Arc<Member>> {
        self.members.get(*self.by_address.get(&address)?)
    }

    /// Returns the pod with this address, unless a certificate has proved an `identity` other than the pod's: the
    /// address has then changed hands, and this snapshot does not know yet to whom.
    pub fn workload_of(&self, address: IpAddr, identity: Option<&SpiffeId>) -> Option<&Workload> {
        let workload = &*self.member_at(address)?.workload;
        identity.is_none_or(|identity| workload.identity == *identity).then_some(workload)
    }

    /// Returns the pod with this unique name.
    pub fn member(&self, uid: &WorkloadUid) -> Option<&Arc<Member>> {
        self.members.get(*self.by_uid.get(uid)?)
    }

    /// The service that has `target`: as one of its own addresses, or from a load balancer.
    pub fn service_at(&self, target: SocketAddr) -> Option<&Arc<Service>> {
        self.indexed_at(target).map(|indexed| &indexed.service)
    }

    fn indexed_at(&self, target: SocketAddr) -> Option<&Arc<IndexedService>> {
        self.by_virtual_address.get(&target.ip()).or_else(|| self.balanced.get(&target))
    }

    /// Returns where a connection from `client` to `target` goes. `turn` chooses among a service's endpoints: callers
    /// increment it, so that consecutive connections spread evenly.
    pub fn resolve(&self, target: SocketAddr, client: &Client<'_>, turn: usize) -> Destination {
        if let Some(reason) = self.disputed.get(&target.ip()) {
            return Destination::Disputed(Arc::clone(reason));
        }
        if let Some(member) = self.member_at(target.ip()) {
            return Destination::Member(Arc::clone(member), target);
        }
        let Some(indexed) = self.indexed_at(target) else {
            return Destination::Unknown;
        };
        let service = &indexed.service;
        let usable = |endpoint: &Endpoint| self.is_usable(endpoint);
        match choose(service, indexed.endpoints(), target, client, turn, usable) {
            Ok(endpoint) => {
                let port = endpoint.target_port(target.port()).unwrap_or(target.port());
                let address = SocketAddr::new(endpoint.address, port);
                match self.member_behind(endpoint) {
                    Some(member) => Destination::Member(Arc::clone(member), address),
                    None => Destination::Outside(address),
                }
            }
            Err(lack) => Destination::NoEndpoint(Arc::clone(service), lack),
        }
    }

    /// Returns whether connections may go to the endpoint. An `EndpointSlice` may be older than the pods: an address
    /// that has passed to another pod is not followed.
    fn is_usable(&self, endpoint: &Endpoint) -> bool {
        if self.disputed.contains_key(&endpoint.address) {
            return false;
        }
        endpoint.workload.is_none() || self.member_behind(endpoint).is_some()
    }

    /// Returns the pod with the endpoint's address, if the endpoint names that pod or none.
    fn member_behind(&self, endpoint: &Endpoint) -> Option<&Arc<Member>> {
        let member = self.member_at(endpoint.address)?;
        let is_named = |uid: &WorkloadUid| member.workload.uid == *uid;
        endpoint.workload.as_ref().is_none_or(is_named).then_some(member)
    }

    /// Addresses to which an enrolled pod may speak only through the mesh: those of every enrolled pod,
    /// of every service that has one among its endpoints, load balancers' included, and those whose owner is
    /// disputed.
    pub fn protected_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let pods = self.members.iter().filter(|member| member.workload.in_mesh);
        let services = self.by_virtual_address.iter().filter(|(_, indexed)| indexed.in_mesh);
        // The hooks know addresses without ports: what else is at a load balancer's comes here too, and is
        // passed through.
        let balanced = self.balanced.iter().filter(|(_, indexed)| indexed.in_mesh);
        let balanced: HashSet<_> = balanced.map(|(balanced, _)| balanced.ip()).collect();
        pods.flat_map(|member| member.workload.addresses.iter().copied())
            .chain(services.map(|(address, _)| *address))
            .chain(self.disputed.keys().copied())
            .chain(balanced)
    }

    /// Returns the destinations that clients reach without the mesh, although their addresses are protected, because
    /// a `DestinationRule` says so.
    pub fn direct_destinations(&self) -> impl Iterator<Item = SocketAddr> {
        self.direct.iter().copied()
    }

    /// Returns whether what comes from the address `client` to the pod's address `local` must be mesh TLS: a pod of
    /// the mesh has, or may have, the client's address, and nothing exempts the connection.
    pub fn expects_mesh(&self, client: IpAddr, local: SocketAddr) -> bool {
        if self.disputed.contains_key(&client) {
            return true;
        }
        let Some(member) = self.member_at(client).filter(|member| member.workload.in_mesh) else {
            return false;
        };
        !self.direct.contains(&local) && !self.bypasses(&member.workload.bypass, local)
    }

    /// Returns whether a pod with this bypass reaches `local` without the mesh, directly or through a service.
    fn bypasses(&self, bypass: &Bypass, local: SocketAddr) -> bool {
        let through = |indexed: &IndexedService| {
            let behind = |endpoint: &&Endpoint| endpoint.address == local.ip();
            indexed
                .endpoints()
                .iter()
                .filter(behind)
                .flat_map(|endpoint| endpoint.ports.iter())
                .any(|port| {
                    let mut targets = indexed.service.reached_at(port.port);
                    port.target_port == local.port()
                        && targets.any(|target| bypass.leaves_outbound(target))
                })
        };
        let mut services = self.by_virtual_address.values().chain(self.balanced.values());
        !bypass.is_empty()
            && (bypass.leaves_outbound(local) || services.any(|indexed| through(indexed)))
    }
}

impl IndexedService {
    fn endpoints(&self) -> &[Endpoint] {
        match &self.service.endpoints {
            Endpoints::Selected(_) => &self.selected,
            Endpoints::Listed(endpoints) => endpoints,
        }
    }
}

#[cfg(test)]
mod tests;
