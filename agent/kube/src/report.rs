//! Tells owners of pods what became of them: the annotation that Istio's tools read, and events.
//!
//! Where Istio's own node agent serves other namespaces of the cluster, its pods carry the same annotation. It is ours
//! to take away only where our mark is beside it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::Status,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::{Value, json};
use sluice_cluster::{
    Marks, PodRecord,
    object::{CAPTURED, REDIRECTION},
};
use sluice_mesh::WorkloadUid;
use tokio::sync::watch;

use crate::{
    client::{innermost, within},
    hub::Hub,
};

/// Shortest time between two writes to the API server.
const INTERVAL: Duration = Duration::from_millis(50);
/// How often everything is reviewed, and what failed is tried again.
const REVIEW: Duration = Duration::from_secs(5);
const CONTROLLER: &str = "sluice-agent";

/// Whether a pod of the node is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capture {
    /// It is captured, as the kernel confirms.
    Captured,
    /// It should be captured, but is not, or not fully, for this reason.
    Failed(String),
}

/// Takes reports; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reports(Arc<watch::Sender<Option<BTreeMap<WorkloadUid, Capture>>>>);

/// Makes the pods' annotations and events match the reports.
struct Teller {
    hub: Arc<Hub>,
    client: Client,
    node: Arc<str>,
    recorder: Recorder,
    /// The reason that the last event of each pod gave.
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

    /// Reports on every pod of the node that should be captured. A pod that is missing in `pods` is not captured, and
    /// its annotation is removed.
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

    /// Brings the pods' annotations and events up to date. What failed is tried again by the next review, unless its
    /// pod has gone: then it fails no more.
    async fn review(&mut self, reported: &BTreeMap<WorkloadUid, Capture>) {
        let pods: Vec<_> = self.hub.cluster().pods_on(&self.node).collect();
        self.told.retain(|uid, _| reported.contains_key(uid));
        let (mut annotated, mut told) = (Ok(()), Ok(()));
        for pod in pods {
            let uid = WorkloadUid(Arc::clone(&pod.uid));
            let capture = reported.get(&uid);
            let is_captured = capture == Some(&Capture::Captured);
            if let Some(annotations) = annotations(&pod, is_captured) {
                annotated = self.annotate(&pod, &annotations).await.and(annotated);
                tokio::time::sleep(INTERVAL).await;
            }
            match capture {
                Some(Capture::Failed(reason)) => {
                    told = self.tell(&pod, uid, reason).await.and(told);
                }
                _ => drop(self.told.remove(&uid)),
            }
        }
        for (what, result) in
            [("annotating captured pods", annotated), ("writing events of pods", told)]
        {
            match result {
                Ok(()) => self.hub.works(what),
                Err(reason) => self.hub.failed(what, reason),
            }
        }
    }

    /// Through the status subresource, which cannot change what the pod runs; the UID keeps the patch
    /// from a namesake that came after.
    async fn annotate(&self, pod: &PodRecord, annotations: &Value) -> Result<(), String> {
        let patch = json!({ "metadata": { "uid": &*pod.uid, "annotations": annotations } });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let started = Instant::now();
        let (parameters, patch) = (PatchParams::default(), Patch::Merge(patch));
        let written = within(api.patch_status(&pod.name, &parameters, &patch)).await;
        tracing::debug!(pod = %pod.uid, %annotations, took = ?started.elapsed(), "annotated");
        match written {
            Ok(_) => Ok(()),
            // The pod is gone, or another has its name: the watch will say so.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 403 => {
                let advice = "grant patch on pods/status to the agent's service account";
                Err(format!("{}: {advice}", status.message))
            }
            Err(error) => Err(innermost(&error)),
        }
    }

    async fn tell(
        &mut self,
        pod: &PodRecord,
        uid: WorkloadUid,
        reason: &str,
    ) -> Result<(), String> {
        if self.told.get(&uid).is_some_and(|told| told == reason) {
            return Ok(());
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
        let written = within(self.recorder.publish(&event, &reference)).await;
        tokio::time::sleep(INTERVAL).await;
        match written {
            Ok(()) => {
                self.told.insert(uid, reason.to_owned());
                Ok(())
            }
            Err(kube::Error::Api(status)) if says_namespace_goes(&status) => Ok(()),
            Err(error) => Err(innermost(&error)),
        }
    }
}

/// The change of a pod's annotations that is due.
fn annotations(pod: &PodRecord, is_captured: bool) -> Option<Value> {
    let Marks { istios, ours } = pod.marks;
    if is_captured {
        let is_due = !(istios && ours);
        is_due.then(|| json!({ REDIRECTION: "enabled", CAPTURED: "true" }))
    } else {
        ours.then(|| json!({ REDIRECTION: null, CAPTURED: null }))
    }
}

/// Whether nothing can be written because the namespace has gone, or is about to: its pods are too.
fn says_namespace_goes(status: &Status) -> bool {
    let Some(details) = &status.details else { return false };
    status.code == 404 && details.kind == "namespaces"
        || details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(istios: bool, ours: bool) -> PodRecord {
        PodRecord {
            uid: "u".into(),
            namespace: "shop".into(),
            name: "web".into(),
            account: "web".into(),
            node: "n1".into(),
            standing: None,
            marks: Marks { istios, ours },
        }
    }

    #[test]
    fn what_istio_has_annotated_is_left_to_istio() {
        assert_eq!(annotations(&pod(true, false), false), None);
        assert_eq!(annotations(&pod(false, false), false), None);
        let none = json!({ "ambient.istio.io/redirection": null, "sluice.dev/captured": null });
        assert_eq!(annotations(&pod(true, true), false), Some(none.clone()));
        assert_eq!(annotations(&pod(false, true), false), Some(none));
    }

    #[test]
    fn a_captured_pod_has_both_annotations_also_where_an_older_agent_wrote_one() {
        let both =
            json!({ "ambient.istio.io/redirection": "enabled", "sluice.dev/captured": "true" });
        for (istios, ours) in [(false, false), (true, false), (false, true)] {
            assert_eq!(annotations(&pod(istios, ours), true), Some(both.clone()));
        }
        assert_eq!(annotations(&pod(true, true), true), None);
    }
}
