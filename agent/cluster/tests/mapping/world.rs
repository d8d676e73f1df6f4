//! A cluster whose objects are given in YAML.

use std::{net::SocketAddr, sync::Arc};

use serde::de::DeserializeOwned;
use serde_json::Value;
use sluice_cluster::{Cluster, Kept, Settings, View, object};
use sluice_mesh::{Client, Destination, Snapshot, Workload, WorkloadUid};

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    view: View,
}

impl World {
    pub(crate) fn new(objects: &str) -> Self {
        let mut cluster = Cluster::new(settings());
        let view = cluster.build(false).unwrap().unwrap();
        let mut world = Self { cluster, view };
        world.apply(objects);
        world
    }

    /// Applies objects. Returns whether that made a new snapshot.
    pub(crate) fn apply(&mut self, objects: &str) -> bool {
        each(objects, |kind, object| keep(&mut self.cluster, kind, object));
        self.settle()
    }

    pub(crate) fn delete(&mut self, objects: &str) -> bool {
        each(objects, |kind, object| forget(&mut self.cluster, kind, object));
        self.settle()
    }

    pub(crate) fn settle(&mut self) -> bool {
        let view = self.cluster.build(false).unwrap();
        let changed = view.is_some();
        self.view = view.unwrap_or_else(|| self.view.clone());
        changed
    }

    pub(crate) fn snapshot(&self) -> &Snapshot {
        &self.view.snapshot
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    pub(crate) fn workload(&self, uid: &str) -> Option<Arc<Workload>> {
        let member = self.snapshot().member(&WorkloadUid(uid.into()))?;
        Some(Arc::clone(&member.workload))
    }

    /// Returns the UIDs of the pods that are in the mesh.
    pub(crate) fn enrolled(&self) -> Vec<String> {
        let members = self.snapshot().members().iter();
        let mut uids: Vec<_> = members
            .filter(|member| member.workload.in_mesh)
            .map(|member| member.workload.uid.to_string())
            .collect();
        uids.sort();
        uids
    }

    /// Returns where a connection goes, as a word and an address.
    pub(crate) fn resolve(&self, target: &str, client: Client<'_>, turn: usize) -> String {
        match self.snapshot().resolve(target.parse().unwrap(), &client, turn) {
            Destination::Member(member, at) => format!("{} {at}", member.workload.uid),
            Destination::Outside(at) => format!("outside {at}"),
            Destination::NoEndpoint(service, lack) => format!("{} {lack}", service.name),
            Destination::Disputed(reason) => reason.to_string(),
            Destination::Unknown => "unknown".to_owned(),
        }
    }

    /// Returns the same for a client on node `a` in zone `west`: every result of its turns, once.
    pub(crate) fn reached(&self, target: &str) -> Vec<String> {
        let mut all: Vec<_> = (0..6).map(|turn| self.resolve(target, client(), turn)).collect();
        all.sort();
        all.dedup();
        all
    }

    pub(crate) fn findings(&self) -> Vec<String> {
        self.view.findings.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn protects(&self, address: &str) -> bool {
        let address: std::net::IpAddr = address.parse().unwrap();
        self.snapshot().protected_addresses().any(|protected| protected == address)
    }

    pub(crate) fn direct(&self) -> Vec<SocketAddr> {
        let mut direct: Vec<_> = self.snapshot().direct_destinations().collect();
        direct.sort();
        direct
    }
}

pub(crate) fn settings() -> Settings {
    Settings::new("cluster.local".parse().unwrap())
}

pub(crate) fn client() -> Client<'static> {
    Client { address: "10.0.9.9".parse().unwrap(), node: "a", zone: Some("west") }
}

/// Returns a running pod in `shop`, with its name as UID. The last three texts go into its metadata, spec and status.
pub(crate) fn pod(name: &str, address: &str, [metadata, spec, status]: [&str; 3]) -> String {
    format!(
        "---\nkind: Pod\nmetadata: {{namespace: shop, name: {name}, uid: {name}, \
         creationTimestamp: '2026-01-01T00:00:00Z', resourceVersion: '1', {metadata}}}\n\
         spec: {{serviceAccountName: {name}, nodeName: a, {spec}}}\n\
         status: {{phase: Running, podIPs: [{{ip: '{address}'}}], {status}}}\n"
    )
}

/// A namespace `shop` that is in the mesh.
pub(crate) const SHOP: &str = "---\nkind: Namespace\n\
    metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";

fn each(objects: &str, mut act: impl FnMut(&str, Value)) {
    let documents: Vec<Value> = serde_saphyr::from_multiple(objects).unwrap();
    for object in documents {
        let kind = object["kind"].as_str().unwrap().to_owned();
        act(&kind, object);
    }
}

fn keep(cluster: &mut Cluster, kind: &str, object: Value) {
    fn with<T: Kept + DeserializeOwned>(cluster: &mut Cluster, object: Value) {
        T::deserialize(object).unwrap().keep(cluster);
    }
    let keep = match kind {
        "Namespace" => with::<object::Namespace>,
        "Node" => with::<object::Node>,
        "Pod" => with::<object::Pod>,
        "Service" => with::<object::Service>,
        "EndpointSlice" => with::<object::EndpointSlice>,
        "DestinationRule" => with::<object::DestinationRule>,
        "AuthorizationPolicy" => with::<object::AuthorizationPolicy>,
        "PeerAuthentication" => with::<object::PeerAuthentication>,
        other => panic!("no kind {other}"),
    };
    keep(cluster, object);
}

fn forget(cluster: &mut Cluster, kind: &str, object: Value) {
    fn with<T: Kept + DeserializeOwned>(cluster: &mut Cluster, object: Value) {
        T::forget(cluster, T::deserialize(object).unwrap().meta());
    }
    let forget = match kind {
        "Namespace" => with::<object::Namespace>,
        "Pod" => with::<object::Pod>,
        "Service" => with::<object::Service>,
        "EndpointSlice" => with::<object::EndpointSlice>,
        "DestinationRule" => with::<object::DestinationRule>,
        "AuthorizationPolicy" => with::<object::AuthorizationPolicy>,
        other => panic!("no kind {other}"),
    };
    forget(cluster, object);
}
