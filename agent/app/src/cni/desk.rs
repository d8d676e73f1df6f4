//! Answers the CNI plugin's questions.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sluice_cni::protocol::{Answer, Attachment, AttachmentId, Request};
use sluice_kernel::Datapath;
use sluice_mesh::WorkloadUid;
use sluice_pods::{PodManager, Verdict};
use sluice_sys::NetnsId;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    announce::{Announce, Decision},
    departure::Departure,
};

/// How long ADD may take here: the plugin gives up after 10 s, and should hear the reason before that.
const ADD_PATIENCE: Duration = Duration::from_secs(9);
/// How long CHECK waits for a pod that has just been changed.
const CHECK_PATIENCE: Duration = Duration::from_secs(2);
/// How often a pod is looked at again while nothing else happens.
const PAUSE: Duration = Duration::from_millis(250);

const NOT_YET: &str = "the agent does not know the state of the mesh yet";

/// The manager of this node's pods, on the real kernel.
pub(crate) type Pods = PodManager<Arc<Datapath>>;

/// The key of an attachment: the network's name and the runtime's identifier.
type Key = (String, AttachmentId);

/// Decides, waits and answers. Its state need not outlive the agent: CHECK asks again for what was lost, and the audit
/// finds what has ended.
pub(crate) struct Desk {
    source: Arc<dyn Announce>,
    pods: Arc<Mutex<Pods>>,
    /// Counts the states of the mesh that have been applied, and the audits.
    turns: watch::Receiver<u64>,
    attachments: Mutex<HashMap<Key, WorkloadUid>>,
    departure: Arc<Departure>,
}

// === impl Desk ===

impl Desk {
    pub(crate) fn new(
        source: Arc<dyn Announce>,
        pods: Arc<Mutex<Pods>>,
        turns: watch::Receiver<u64>,
        departure: Arc<Departure>,
    ) -> Self {
        Self { source, pods, turns, attachments: Mutex::default(), departure }
    }

    pub(crate) async fn answer(&self, request: Request) -> Answer {
        match request {
            Request::Add(attachment) => self.add(&attachment).await,
            Request::Del(attachment) => self.del(attachment).await,
            Request::Check(attachment) => self.check(&attachment).await,
            Request::Status => self.status(),
            Request::Entry { present } => self.entry(present),
            Request::Gc { network, valid } => self.gc(&network, &valid).await,
        }
    }

    async fn add(&self, attachment: &Attachment) -> Answer {
        let netns = match namespace(attachment) {
            Ok(netns) => netns,
            Err(reason) => return Answer::TryAgain { reason },
        };
        let deadline = Instant::now() + ADD_PATIENCE;
        let uid = match self.decide(attachment, deadline).await {
            Ok(Decision::Enrolled(uid)) => uid,
            Ok(Decision::Outside) => return Answer::Outside,
            Err(reason) => return Answer::TryAgain { reason },
        };
        let key = (attachment.network.clone(), attachment.id.clone());
        self.attachments().insert(key, uid.clone());
        let mut turns = self.turns.clone();
        loop {
            let verdict = self.verdict(&uid, true).await;
            let reason = match judge(verdict, netns) {
                Ok(()) => return Answer::Captured,
                Err(Unmet::NotYet(reason) | Unmet::Amiss(reason)) => reason,
            };
            if Instant::now() >= deadline || self.is_replaced() {
                return Answer::TryAgain { reason: format!("pod {uid} is not captured: {reason}") };
            }
            // Either something happens, or it is time to look again.
            drop(timeout_at(deadline.min(Instant::now() + PAUSE), turns.changed()).await);
        }
    }

    /// Asks the source until it decides or the deadline passes: it may hear of an unknown pod at any moment.
    async fn decide(&self, attachment: &Attachment, deadline: Instant) -> Result<Decision, String> {
        let mut turns = self.turns.clone();
        loop {
            let Ok(decision) = timeout_at(deadline, self.source.announce(attachment)).await else {
                return Err("the source of the mesh's state did not decide".to_owned());
            };
            match decision {
                Ok(decision) => return Ok(decision),
                Err(reason) if Instant::now() >= deadline || self.is_replaced() => {
                    return Err(reason);
                }
                Err(_) => {
                    drop(timeout_at(deadline.min(Instant::now() + PAUSE), turns.changed()).await);
                }
            }
        }
    }

    async fn check(&self, attachment: &Attachment) -> Answer {
        let netns = match namespace(attachment) {
            Ok(netns) => netns,
            Err(reason) => return Answer::Amiss { reason },
        };
        let deadline = Instant::now() + CHECK_PATIENCE;
        let uid = match self.decide(attachment, deadline).await {
            Ok(Decision::Enrolled(uid)) => uid,
            Ok(Decision::Outside) => return Answer::Outside,
            Err(reason) => return Answer::TryAgain { reason },
        };
        let mut turns = self.turns.clone();
        loop {
            match judge(self.verdict(&uid, false).await, netns) {
                Ok(()) => return Answer::Captured,
                Err(Unmet::Amiss(reason)) => return Answer::Amiss { reason },
                Err(Unmet::NotYet(reason)) if Instant::now() >= deadline => {
                    return Answer::Amiss { reason };
                }
                Err(Unmet::NotYet(_)) => {
                    drop(timeout_at(deadline.min(Instant::now() + PAUSE), turns.changed()).await);
                }
            }
        }
    }

    async fn del(&self, attachment: Attachment) -> Answer {
        let netns = namespace(&attachment).ok();
        let uid = attachment.pod.as_ref().and_then(|pod| pod.uid.clone());
        let key = (attachment.network, attachment.id);
        let known = self.attachments().remove(&key);
        // An agent that was started since ADD recognises the sandbox by its namespace. Without one, nothing is
        // withdrawn: the pod may have a new sandbox already.
        let uid = match (known, uid, netns) {
            (Some(known), ..) => Some(known),
            (None, Some(uid), Some(netns)) => {
                let uid = WorkloadUid(uid.into());
                let verdict = self.verdict(&uid, false).await;
                matches!(verdict, Some(Verdict::Captured(found)) if found == netns).then_some(uid)
            }
            _ => None,
        };
        self.withdraw_all(uid.into_iter());
        Answer::Done
    }

    /// Returns whether another agent is taking the node over. This one then captures nothing more, and the plugin
    /// should soon ask the other.
    fn is_replaced(&self) -> bool {
        self.departure.is_replaced()
    }

    /// Has the source forget these pods, except those with another attachment left: the pod's next sandbox, or its
    /// second interface.
    fn withdraw_all(&self, uids: impl Iterator<Item = WorkloadUid>) {
        for uid in uids {
            let is_attached = self.attachments().values().any(|attached| *attached == uid);
            if !is_attached {
                tracing::debug!(pod = %uid, "the pod's sandbox has ended");
                self.source.withdraw(&uid);
            }
        }
    }

    async fn gc(&self, network: &str, valid: &[AttachmentId]) -> Answer {
        let stale = |(of, id): &Key| of == network && !valid.contains(id);
        let ended: Vec<_> =
            self.attachments().extract_if(|key, _| stale(key)).map(|(_, uid)| uid).collect();
        if !ended.is_empty() {
            tracing::info!(network, attachments = ended.len(), "stale attachments removed");
        }
        self.withdraw_all(ended.into_iter());
        // Attachments that only an earlier agent knew are found by namespaces that have gone.
        match self.blocking(|pods| drop(pods.audit())).await {
            Some(()) => Answer::Done,
            None => Answer::TryAgain { reason: "BUG: the audit of pods panicked".to_owned() },
        }
    }

    /// Answers whether the plugin is to be in the node's network lists: not once the pods are to leave the mesh for
    /// good. From then on, notes whether the plugin is in them.
    fn entry(&self, present: bool) -> Answer {
        if *self.turns.borrow() == 0 {
            return Answer::TryAgain { reason: NOT_YET.to_owned() };
        }
        if !self.departure.is_under_way() {
            return Answer::Done;
        }
        self.departure.plugin_is(present);
        Answer::Outside
    }

    fn status(&self) -> Answer {
        if *self.turns.borrow() > 0 {
            return Answer::Done;
        }
        Answer::TryAgain { reason: NOT_YET.to_owned() }
    }

    /// Returns what the kernel has of the pod. With `hasten`, a pod that is not captured is tried again first.
    async fn verdict(&self, uid: &WorkloadUid, hasten: bool) -> Option<Verdict> {
        let uid = uid.clone();
        self.blocking(move |pods| {
            let verdict = pods.verify(&uid);
            if !hasten || matches!(verdict, Verdict::Captured(_) | Verdict::Undeclared) {
                return verdict;
            }
            drop(pods.hasten(&uid));
            pods.verify(&uid)
        })
        .await
    }

    /// Runs `work` off the runtime's thread, because enrolment enters namespaces and waits for the kernel.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pods) -> T + Send + 'static,
    ) -> Option<T> {
        let pods = Arc::clone(&self.pods);
        let work = move || work(&mut pods.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(work).await.ok()
    }

    fn attachments(&self) -> MutexGuard<'_, HashMap<Key, WorkloadUid>> {
        self.attachments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a pod is not captured in the namespace that the runtime named.
enum Unmet {
    NotYet(String),
    Amiss(String),
}

fn judge(verdict: Option<Verdict>, netns: NetnsId) -> Result<(), Unmet> {
    match verdict {
        Some(Verdict::Captured(found)) if found == netns => Ok(()),
        Some(Verdict::Captured(_)) => {
            Err(Unmet::NotYet("it is captured in another network namespace".to_owned()))
        }
        Some(Verdict::NotCaptured(Some(reason))) => Err(Unmet::NotYet(reason)),
        Some(Verdict::NotCaptured(None)) => Err(Unmet::NotYet("it has not been tried".to_owned())),
        Some(Verdict::Undeclared) => {
            Err(Unmet::NotYet("the state of the mesh with it is not in force yet".to_owned()))
        }
        Some(Verdict::Amiss(reason)) => Err(Unmet::Amiss(reason)),
        _ => Err(Unmet::NotYet("BUG: enrolment panicked".to_owned())),
    }
}

/// Returns the namespace that the runtime's path leads to in the agent's own view of the file system.
fn namespace(attachment: &Attachment) -> Result<NetnsId, String> {
    let path = attachment.netns.as_deref().unwrap_or(Path::new(""));
    match fs::metadata(path) {
        Ok(found) => Ok(NetnsId { device: found.dev(), inode: found.ino() }),
        Err(error) => Err(format!(
            "the agent does not see the network namespace {}: {error}; mount its directory into the \
             agent's container, with mountPropagation HostToContainer",
            path.display()
        )),
    }
}
