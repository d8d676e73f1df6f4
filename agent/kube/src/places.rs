//! Follows on which nodes the pods of each service account run.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use kube::{Api, runtime::watcher::Event};
use serde::Deserialize;
use sluice_cluster::object::{Meta, Object};
use tokio::sync::watch;

use crate::{ApiServer, events, resource, watched::Watched};

/// How long to wait for a pod that is not known yet: an agent may hear of its pods before we do.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where pods of one service account run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this node, and perhaps on others too.
    Here,
    /// On other nodes only.
    Elsewhere,
    /// Nowhere, but the node has pods of other accounts.
    Nowhere,
    /// Nowhere, and no pod is known on the node.
    UnknownNode,
    /// The pods were not listed yet.
    Unknown,
}

/// Knows every pod that is bound to a node and has not ended; cheap to clone.
#[derive(Clone, Debug)]
pub struct PodPlaces(watch::Receiver<Option<Pods>>);

/// The fields of a pod that matter here; the others are dropped while it is read.
#[derive(Clone, Debug, Default, Deserialize)]
struct PlacedPod {
    metadata: Meta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    node_name: Option<String>,
    service_account_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    phase: Option<String>,
}

/// Namespace and service account.
type Account = Arc<(String, String)>;

/// Where one pod runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Spot {
    node: Arc<str>,
    name: Arc<str>,
    account: Account,
}

#[derive(Debug, Default)]
struct Pods {
    by_uid: HashMap<String, Spot>,
    accounts: HashMap<Account, BTreeMap<Arc<str>, usize>>,
    nodes: HashMap<Arc<str>, usize>,
}

// === impl PodPlaces ===

impl PodPlaces {
    /// Starts to follow the pods of the whole cluster.
    pub fn follow(server: &ApiServer) -> Self {
        let (known, places) = watch::channel(None);
        let api: Api<Watched<PlacedPod>> = Api::all_with(server.0.clone(), &resource::PODS.api(0));
        tokio::spawn(async move {
            let what = ("following pods", "get, list and watch on pods");
            loop {
                let mut listed = None;
                events::follow(api.clone(), "", what, |event| take(&known, &mut listed, event))
                    .await;
                tokio::time::sleep(PATIENCE).await;
            }
        });
        Self(places)
    }

    /// Returns the state after a listing that found no pod.
    #[cfg(test)]
    pub(crate) fn listed_none() -> Self {
        Self(watch::channel(Some(Pods::default())).1)
    }

    /// Returns where pods of a service account run, as seen from `node`. Waits a moment for a pod that is not known
    /// yet.
    pub async fn find(&self, namespace: &str, account: &str, node: &str) -> Place {
        let account = (namespace.to_owned(), account.to_owned());
        let look = |known: &Option<Pods>| {
            known.as_ref().map_or(Place::Unknown, |pods| pods.find(&account, node))
        };
        let mut places = self.0.clone();
        let here = places.wait_for(|known| look(known) == Place::Here);
        match tokio::time::timeout(PATIENCE, here).await {
            Ok(Ok(_)) => Place::Here,
            Ok(Err(_)) | Err(_) => look(&self.0.borrow()),
        }
    }

    /// Returns whether the pods were listed.
    pub fn is_known(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Returns the node of the pod with this UID and name; `Err` while the pods were not listed yet.
    pub(crate) async fn node_of(&self, uid: &str, name: &str) -> Result<Option<String>, ()> {
        let look = |known: &Option<Pods>| {
            let spot = known.as_ref()?.by_uid.get(uid)?;
            (*spot.name == *name).then(|| spot.node.to_string())
        };
        let mut places = self.0.clone();
        let found = places.wait_for(|known| look(known).is_some());
        // Whatever came of it is looked at below.
        drop(tokio::time::timeout(PATIENCE, found).await);
        let known = self.0.borrow();
        if known.is_none() { Err(()) } else { Ok(look(&known)) }
    }

    /// Returns whether the pods were listed and none of them has this UID.
    pub(crate) fn is_gone(&self, uid: &str) -> bool {
        self.0.borrow().as_ref().is_some_and(|pods| !pods.by_uid.contains_key(uid))
    }
}

fn take(
    known: &watch::Sender<Option<Pods>>,
    listed: &mut Option<Pods>,
    event: Event<Watched<PlacedPod>>,
) {
    match event {
        Event::Init => *listed = Some(Pods::default()),
        Event::InitApply(pod) => {
            if let Some(pods) = listed {
                pods.keep(&pod.object);
            }
        }
        Event::InitDone => {
            if let Some(pods) = listed.take() {
                tracing::debug!(pods = pods.by_uid.len(), "listed the pods");
                known.send_replace(Some(pods));
            }
        }
        Event::Apply(pod) => change(known, |pods| pods.keep(&pod.object)),
        Event::Delete(pod) => change(known, |pods| pods.forget(&pod.object.metadata.uid)),
    }
}

fn change(known: &watch::Sender<Option<Pods>>, how: impl FnOnce(&mut Pods) -> bool) {
    known.send_if_modified(|known| known.as_mut().is_some_and(how));
}

// === impl Pods ===

impl Pods {
    /// Takes over a pod in its present state. Returns whether that changes where anything runs.
    fn keep(&mut self, pod: &PlacedPod) -> bool {
        let PlacedPod { metadata, spec, status } = pod;
        let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let node = spec.node_name.as_deref().filter(|node| !node.is_empty() && !has_ended);
        let Some(node) = node else { return self.forget(&metadata.uid) };
        let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
        let account = (metadata.namespace.clone(), account.unwrap_or("default").to_owned());
        let is_same = self.by_uid.get(&metadata.uid).is_some_and(|spot| {
            *spot.node == *node && *spot.account == account && *spot.name == *metadata.name
        });
        if is_same {
            return false;
        }
        self.forget(&metadata.uid);
        // Names are shared, because a node has hundreds of pods and an account thousands.
        let known = self.nodes.get_key_value(node).map(|(node, _)| Arc::clone(node));
        let node = known.unwrap_or_else(|| node.into());
        let known = self.accounts.get_key_value(&account).map(|(account, _)| Arc::clone(account));
        let account = known.unwrap_or_else(|| Arc::new(account));
        *self.nodes.entry(Arc::clone(&node)).or_default() += 1;
        let nodes = self.accounts.entry(Arc::clone(&account)).or_default();
        *nodes.entry(Arc::clone(&node)).or_default() += 1;
        let spot = Spot { node, name: metadata.name.as_str().into(), account };
        self.by_uid.insert(metadata.uid.clone(), spot);
        true
    }

    fn forget(&mut self, uid: &str) -> bool {
        let Some(Spot { node, account, .. }) = self.by_uid.remove(uid) else { return false };
        if let Some(nodes) = self.accounts.get_mut(&account) {
            if let Some(count) = nodes.get_mut(&node) {
                *count -= 1;
            }
            nodes.retain(|_, count| *count > 0);
            if nodes.is_empty() {
                self.accounts.remove(&account);
            }
        }
        if let Some(count) = self.nodes.get_mut(&node) {
            *count -= 1;
            if *count == 0 {
                self.nodes.remove(&node);
            }
        }
        true
    }

    fn find(&self, account: &(String, String), node: &str) -> Place {
        match self.accounts.get(account) {
            Some(nodes) if nodes.contains_key(node) => Place::Here,
            Some(_) => Place::Elsewhere,
            None if self.nodes.contains_key(node) => Place::Nowhere,
            None => Place::UnknownNode,
        }
    }
}

impl Object for PlacedPod {
    fn meta(&self) -> &Meta {
        &self.metadata
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, account: &str, node: &str, phase: &str) -> PlacedPod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": uid, "namespace": "shop", "uid": uid},
            "spec": {"nodeName": node, "serviceAccountName": account, "containers": [{"name": "c"}]},
            "status": {"phase": phase, "podIP": "10.0.0.1"},
        }))
        .unwrap()
    }

    fn find(pods: &Pods, account: &str, node: &str) -> Place {
        pods.find(&("shop".to_owned(), account.to_owned()), node)
    }

    #[test]
    fn a_pod_runs_on_its_node_until_it_has_ended_or_is_gone() {
        let mut pods = Pods::default();
        assert!(!pods.keep(&pod("a", "web", "", "Pending")), "not bound to a node yet");
        assert_eq!(find(&pods, "web", "n1"), Place::UnknownNode);
        assert!(pods.keep(&pod("a", "web", "n1", "Pending")));
        assert!(!pods.keep(&pod("a", "web", "n1", "Running")), "nothing that matters changed");
        assert_eq!(find(&pods, "web", "n1"), Place::Here);
        assert_eq!(find(&pods, "web", "n2"), Place::Elsewhere);
        assert_eq!(find(&pods, "cart", "n1"), Place::Nowhere);
        pods.keep(&pod("b", "web", "n1", "Running"));
        assert!(pods.forget("a"));
        assert_eq!(find(&pods, "web", "n1"), Place::Here, "another pod of the account is there");
        assert!(pods.keep(&pod("b", "web", "n1", "Succeeded")));
        assert_eq!(find(&pods, "web", "n1"), Place::UnknownNode);
        assert!(pods.accounts.is_empty() && pods.nodes.is_empty() && pods.by_uid.is_empty());
    }

    #[test]
    fn an_account_of_the_same_name_elsewhere_is_another() {
        let mut pods = Pods::default();
        pods.keep(&pod("a", "web", "n1", "Running"));
        let other = ("bank".to_owned(), "web".to_owned());
        assert_eq!(pods.find(&other, "n1"), Place::Nowhere);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_takes_the_place_of_what_was_known_and_until_then_nothing_is() {
        let (known, places) = watch::channel(None);
        let places = PodPlaces(places);
        assert_eq!(places.find("shop", "web", "n1").await, Place::Unknown);
        assert_eq!(places.node_of("a", "a").await, Err(()));
        assert!(!places.is_gone("a"), "not known to be gone");
        let watched = |pod: PlacedPod| Watched::of(pod);
        let mut listed = None;
        for event in [
            Event::Init,
            Event::InitApply(watched(pod("a", "web", "n1", "Running"))),
            Event::InitDone,
        ] {
            take(&known, &mut listed, event);
        }
        assert_eq!(places.find("shop", "web", "n1").await, Place::Here);
        assert_eq!(places.node_of("a", "a").await, Ok(Some("n1".to_owned())));
        assert_eq!(places.node_of("a", "b").await, Ok(None), "a UID of another name");
        take(&known, &mut listed, Event::Init);
        assert_eq!(places.find("shop", "web", "n1").await, Place::Here, "while it is listed anew");
        take(&known, &mut listed, Event::InitDone);
        assert_eq!(places.find("shop", "web", "n1").await, Place::UnknownNode);
        assert!(places.is_gone("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_on_its_way_is_waited_for() {
        let (known, places) = watch::channel(Some(Pods::default()));
        let places = PodPlaces(places);
        let arrives = async {
            tokio::time::sleep(PATIENCE / 2).await;
            change(&known, |pods| pods.keep(&pod("a", "web", "n1", "Pending")));
        };
        let (place, ()) = tokio::join!(places.find("shop", "web", "n1"), arrives);
        assert_eq!(place, Place::Here);
    }
}
