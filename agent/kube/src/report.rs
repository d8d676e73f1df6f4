//! Tells owners of pods what became of them: the annotation that Istio's tools read, and events.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use sluice_cluster::PodRecord;
use sluice_mesh::WorkloadUid;
use tokio::sync::watch;

use crate::hub::Hub;

/// Istio's annotation of captured pods.
pub(crate) const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Shortest time between two writes to the API server.
const INTERVAL: Duration = Duration::from_millis(50);
/// How often everything is looked at again, and what failed is tried again.
const REVIEW: Duration = Duration::from_secs(5);
const CONTROLLER: &str = "sluice-agent";

/// What became of a pod of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// It is captured, as the kernel confirms.
    Captured,
    /// It should be, and is not, or not wholly, for this reason.
    Failed(String),
}

/// Takes reports; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reports(Arc<watch::Sender<Option<BTreeMap<WorkloadUid, Capture>>>>);

/// Makes the pods' annotations and events what was reported.
struct Teller {
    hub: Arc<Hub>,
    client: Client,
    node: Arc<str>,
    recorder: Recorder,
    /// What was told of each pod by an event.
    told: BTreeMap<WorkloadUid, String>,
}

// === impl Reports ===

impl Reports {
    pub(crate) fn start(hub: &Arc<Hub>, client: &Client, node: &str) -> Self {
        let (sender, reports) = watch::channel(None);
        let reporter =
            Reporter { controller: CONTROLLER.to_owned(), instance: Some(node.to_owned()) };
        let teller = Teller {
            hub: Arc::clone(hub),
            client: client.clone(),
            node: node.into(),
            recorder: Recorder::new(client.clone(), reporter),
            told: BTreeMap::new(),
        };
        tokio::spawn(teller.run(reports));
        Self(Arc::new(sender))
    }

    /// Says how every pod of the node is that should be captured. A pod that is not named is not
    /// captured, and its annotation is taken away.
    pub fn report(&self, pods: BTreeMap<WorkloadUid, Capture>) {
        self.0.send_if_modified(|reported| {
            let is_news = reported.as_ref() != Some(&pods);
            *reported = Some(pods);
            is_news
        });
    }
}

// === impl Teller ===

impl Teller {
    async fn run(mut self, mut reports: watch::Receiver<Option<BTreeMap<WorkloadUid, Capture>>>) {
        loop {
            tokio::select! {
                changed = reports.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep(REVIEW) => {}
            }
            let reported = reports.borrow_and_update().clone();
            if let Some(reported) = reported {
                self.review(&reported).await;
            }
        }
    }

    async fn review(&mut self, reported: &BTreeMap<WorkloadUid, Capture>) {
        let pods: Vec<_> = self.hub.cluster().pods_on(&self.node).collect();
        self.told.retain(|uid, _| reported.contains_key(uid));
        for pod in pods {
            let uid = WorkloadUid(Arc::clone(&pod.uid));
            let capture = reported.get(&uid);
            let is_captured = capture == Some(&Capture::Captured);
            if is_captured != pod.annotated {
                self.annotate(&pod, is_captured).await;
                tokio::time::sleep(INTERVAL).await;
            }
            match capture {
                Some(Capture::Failed(reason)) => self.tell(&pod, uid, reason).await,
                _ => drop(self.told.remove(&uid)),
            }
        }
    }

    /// Through the status subresource, which cannot change what the pod runs; the UID keeps the patch
    /// from a namesake that came after.
    async fn annotate(&self, pod: &PodRecord, is_captured: bool) {
        let value = is_captured.then_some("enabled");
        let patch = serde_json::json!({
            "metadata": { "uid": &*pod.uid, "annotations": { REDIRECTION: value } },
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let started = Instant::now();
        let what = "annotating captured pods";
        match api.patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => self.hub.works(what),
            // Gone, or another by the name: the watch will say so.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let advice = "grant patch on pods/status to the agent's service account";
                self.hub.failed(what, format!("{}: {advice}", status.message));
            }
            Err(error) => self.hub.failed(what, crate::client::innermost(&error)),
        }
        tracing::debug!(pod = %pod.uid, is_captured, took = ?started.elapsed(), "annotated");
    }

    async fn tell(&mut self, pod: &PodRecord, uid: WorkloadUid, reason: &str) {
        if self.told.get(&uid).is_some_and(|told| told == reason) {
            return;
        }
        let reference = k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            uid: Some(pod.uid.to_string()),
            ..Default::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: "NotCaptured".to_owned(),
            note: Some(reason.to_owned()),
            action: "Capture".to_owned(),
            secondary: None,
        };
        let what = "writing events of pods";
        match self.recorder.publish(&event, &reference).await {
            Ok(()) => {
                self.hub.works(what);
                self.told.insert(uid, reason.to_owned());
            }
            Err(error) => self.hub.failed(what, crate::client::innermost(&error)),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
