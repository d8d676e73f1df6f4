//! How a cluster keeps and forgets objects of each kind.

use std::{collections::HashSet, sync::Arc};

use super::{Cluster, NamespaceFacts};
use crate::{
    facts::{Name, PodFacts, RuleFacts, ServiceFacts, SliceFacts},
    object::{
        AuthorizationPolicy, DestinationRule, EndpointSlice, Meta, Namespace, Node, Object,
        PeerAuthentication, Pod, Service,
    },
    state::policies::Kind,
};

/// The label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// A kind of object that a [`Cluster`] keeps.
pub trait Kept: Object {
    /// The kind's name.
    const KIND: &'static str;

    /// Returns what tells objects of the kind apart over time.
    fn key(meta: &Meta) -> String {
        format!("{}/{}", meta.namespace, meta.name)
    }

    /// Takes over the object in its present state.
    fn keep(&self, cluster: &mut Cluster);

    /// Forgets an object that was deleted.
    fn forget(cluster: &mut Cluster, meta: &Meta);

    /// Returns whether any object of the kind is known.
    fn any(cluster: &Cluster) -> bool;

    /// Forgets every object whose key is not in `listed`, which names all that there are.
    fn retain(cluster: &mut Cluster, listed: &HashSet<String>);
}

fn key(name: &Name) -> String {
    format!("{}/{}", name.namespace, name.name)
}

impl Cluster {
    fn name(&mut self, meta: &Meta) -> Name {
        Name { namespace: self.names.text(&meta.namespace), name: self.names.text(&meta.name) }
    }

    fn namespace_changed(&mut self, name: &str) {
        self.decisions += 1;
        self.pods.touch(|pod| &*pod.namespace == name);
        self.services.touch_namespace(name);
    }
}

impl Kept for Namespace {
    const KIND: &'static str = "Namespace";

    fn key(meta: &Meta) -> String {
        meta.name.clone()
    }

    fn keep(&self, cluster: &mut Cluster) {
        let name = cluster.names.text(&self.metadata.name);
        let labels = cluster.names.labels(self.metadata.labels.clone());
        let new = NamespaceFacts { labels, gone: false };
        if cluster.namespaces.get(&name) != Some(&new) {
            cluster.namespaces.insert(Arc::clone(&name), new);
            cluster.namespace_changed(&name);
        }
    }

    fn forget(cluster: &mut Cluster, meta: &Meta) {
        if let Some(namespace) = cluster.namespaces.get_mut(meta.name.as_str()) {
            namespace.gone = true;
        }
    }

    fn any(cluster: &Cluster) -> bool {
        !cluster.namespaces.is_empty()
    }

    fn retain(cluster: &mut Cluster, listed: &HashSet<String>) {
        for (name, namespace) in &mut cluster.namespaces {
            namespace.gone |= !listed.contains(&**name);
        }
    }
}

impl Kept for Node {
    const KIND: &'static str = "Node";

    fn key(meta: &Meta) -> String {
        meta.name.clone()
    }

    fn keep(&self, cluster: &mut Cluster) {
        let zone = self.metadata.labels.get(ZONE).map(|zone| cluster.names.text(zone));
        let name = cluster.names.text(&self.metadata.name);
        if cluster.zones.get(&name) == zone.as_ref() {
            return;
        }
        match zone {
            Some(zone) => drop(cluster.zones.insert(Arc::clone(&name), zone)),
            None => drop(cluster.zones.remove(&name)),
        }
        cluster.pods.touch(|pod| pod.node == name);
    }

    fn forget(cluster: &mut Cluster, meta: &Meta) {
        cluster.zones.remove(meta.name.as_str());
        cluster.pods.touch(|pod| *pod.node == *meta.name);
    }

    fn any(cluster: &Cluster) -> bool {
        !cluster.zones.is_empty()
    }

    fn retain(cluster: &mut Cluster, listed: &HashSet<String>) {
        let gone: Vec<_> =
            cluster.zones.keys().filter(|name| !listed.contains(&***name)).cloned().collect();
        for name in gone {
            cluster.zones.remove(&name);
            cluster.pods.touch(|pod| pod.node == name);
        }
    }
}

impl Kept for Pod {
    const KIND: &'static str = "Pod";

    fn key(meta: &Meta) -> String {
        meta.uid.clone()
    }

    fn keep(&self, cluster: &mut Cluster) {
        match PodFacts::of(self, &mut cluster.names) {
            Some(facts) => cluster.pods.keep(facts),
            None => cluster.pods.forget(&self.metadata.uid),
        }
    }

    fn forget(cluster: &mut Cluster, meta: &Meta) {
        cluster.pods.forget(&meta.uid);
    }

    fn any(cluster: &Cluster) -> bool {
        cluster.pods.len() > 0
    }

    fn retain(cluster: &mut Cluster, listed: &HashSet<String>) {
        cluster.pods.retain(listed);
    }
}

impl Kept for Service {
    const KIND: &'static str = "Service";

    fn keep(&self, cluster: &mut Cluster) {
        match ServiceFacts::of(self, &mut cluster.names) {
            Some(facts) => cluster.services.keep(facts),
            None => Self::forget(cluster, &self.metadata),
        }
    }

    fn forget(cluster: &mut Cluster, meta: &Meta) {
        let name = cluster.name(meta);
        cluster.services.forget(&name);
    }

    fn any(cluster: &Cluster) -> bool {
        cluster.services.all().next().is_some()
    }

    fn retain(cluster: &mut Cluster, listed: &HashSet<String>) {
        cluster.services.retain(|name| listed.contains(&key(name)));
    }
}

impl Kept for EndpointSlice {
    const KIND: &'static str = "EndpointSlice";

    fn keep(&self, cluster: &mut Cluster) {
        match SliceFacts::of(self, &mut cluster.names) {
            Some(facts) => cluster.services.keep_slice(facts),
            None => Self::forget(cluster, &self.metadata),
        }
    }

    fn forget(cluster: &mut Cluster, meta: &Meta) {
        let name = cluster.name(meta);
        cluster.services.forget_slice(&name);
    }

    fn any(cluster: &Cluster) -> bool {
        cluster.services.all_slices().next().is_some()
    }

    fn retain(cluster: &mut Cluster, listed: &HashSet<String>) {
        cluster.services.retain_slices(|name| listed.contains(&key(name)));
    }
}

impl Kept for DestinationRule {
    const KIND: &'static str = "DestinationRule";

    fn keep(&self, cluster: &mut Cluster) {
        let name = cluster.name(&self.metadata);
        match RuleFacts::of(self, &cluster.settings, &mut cluster.names) {
            Some(facts) if cluster.rules.get(&name) == Some(&facts) => {}
            Some(facts) => {
                cluster.rules.insert(name, facts);
                cluster.rules_changed = true;
            }
            None => Self::forget(cluster, &self.metadata),
        }
    }

    fn forget(cluster: &mut Cluster, meta: &Meta) {
        let name = cluster.name(meta);
        cluster.rules_changed |= cluster.rules.remove(&name).is_some();
    }

    fn any(cluster: &Cluster) -> bool {
        !cluster.rules.is_empty()
    }

    fn retain(cluster: &mut Cluster, listed: &HashSet<String>) {
        let before = cluster.rules.len();
        cluster.rules.retain(|name, _| listed.contains(&key(name)));
        cluster.rules_changed |= cluster.rules.len() != before;
    }
}

macro_rules! kept_policy {
    ($object:ty, $kind:expr) => {
        impl Kept for $object {
            const KIND: &'static str = $kind.name();

            fn keep(&self, cluster: &mut Cluster) {
                let name = cluster.name(&self.0.metadata);
                cluster.policies.keep($kind, name, &self.0);
            }

            fn forget(cluster: &mut Cluster, meta: &Meta) {
                let name = cluster.name(meta);
                cluster.policies.forget($kind, &name);
            }

            fn any(cluster: &Cluster) -> bool {
                cluster.policies.any($kind)
            }

            fn retain(cluster: &mut Cluster, listed: &HashSet<String>) {
                cluster.policies.retain($kind, |name| listed.contains(&key(name)));
            }
        }
    };
}

kept_policy!(AuthorizationPolicy, Kind::Authorization);
kept_policy!(PeerAuthentication, Kind::PeerAuthentication);
