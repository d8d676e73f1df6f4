//! Takes what a CNI plugin says of a pod that is being set up, and decides whether the pod belongs to the mesh.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use kube::{Api, Client};
use sluice_cluster::{Announced, Kept, Outside, PodRecord, Standing, object};
use sluice_mesh::WorkloadUid;
use tokio::time::{Instant, timeout, timeout_at};

use crate::{hub::Hub, resource, watched::Watched};

/// How long an answer may take; the plugin itself waits 10 s.
const WITHIN: Duration = Duration::from_secs(6);
/// How long the watch has before the API server is asked about the pod by name.
const WATCH_TIME: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(10);

/// A pod that is being set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// Its UID, of a static pod the one that the kubelet gave it; older runtimes do not tell it, and then the API
    /// server is asked who has the name now.
    pub uid: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Addresses that it was given.
    pub addresses: Vec<IpAddr>,
}

/// Whether a pod belongs to the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It does, and the snapshot in force has it under this UID.
    Enrolled(WorkloadUid),
    /// It is to be left alone.
    Outside(Outside),
}

/// Why it could not be decided whether the pod belongs to the mesh. The pod must not start: its first packet might pass
/// uncaptured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnnounceError {
    /// The cluster was not listed in time.
    #[error(
        "the state of the cluster is not known yet: is the API server reachable from the agent?"
    )]
    NotReady,
    /// The API server knows no such pod.
    #[error("pod {namespace}/{name} (UID {uid}) is not known to the API server")]
    UnknownPod {
        /// Namespace as announced.
        namespace: String,
        /// Name as announced.
        name: String,
        /// UID as announced.
        uid: String,
    },
    /// The UID belongs to a pod of another name, or on another node.
    #[error("UID {uid} belongs to pod {actual} on node {node:?}")]
    Mismatch {
        /// The UID.
        uid: String,
        /// The pod that has it.
        actual: String,
        /// Its node.
        node: String,
    },
    /// The pod is known, but the mesh cannot take it.
    #[error("pod {0} is to be enrolled, but cannot be: see the findings in `sluice status`")]
    NotTaken(String),
}

/// Takes announcements; cheap to clone.
#[derive(Clone)]
pub struct Announcements {
    hub: Arc<Hub>,
    client: Client,
    node: Arc<str>,
}

/// What is announced while it is decided; forgotten when this is dropped, unless it `stays`.
struct Attempt<'a> {
    announcements: &'a Announcements,
    uid: &'a str,
    stays: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.stays {
            self.announcements.withdraw(self.uid);
        }
    }
}

// === impl Announcements ===

impl Announcements {
    pub(crate) fn new(hub: &Arc<Hub>, client: &Client, node: &str) -> Self {
        Self { hub: Arc::clone(hub), client: client.clone(), node: node.into() }
    }

    /// Takes an announcement and decides. When this returns [`Decision::Enrolled`], the pod is in the snapshot in
    /// force, with the announced namespace and addresses.
    ///
    /// # Errors
    ///
    /// When there is no decision in time; the announcement is then withdrawn.
    pub async fn announce(&self, announcement: Announcement) -> Result<Decision, AnnounceError> {
        let uid = match &announcement.uid {
            Some(uid) => uid.clone(),
            None => self.uid_of(&announcement).await?,
        };
        let deadline = Instant::now() + WITHIN;
        let record = match timeout_at(deadline, self.record(&uid, &announcement)).await {
            Ok(record) => record,
            Err(_elapsed) if self.hub.is_complete() => return Err(unknown(&uid, &announcement)),
            Err(_elapsed) => return Err(AnnounceError::NotReady),
        };
        // Also when nobody waits for the decision any more.
        let mut attempt = Attempt { announcements: self, uid: &record.uid, stays: false };
        let decided = self.decide(&record, announcement, deadline).await;
        attempt.stays = matches!(decided, Ok(Decision::Enrolled(_)));
        decided
    }

    /// Forgets what was announced of a pod, by the UID that the API server has for it.
    pub fn withdraw(&self, uid: &str) {
        self.hub.cluster().withdraw(uid);
        self.hub.changed.notify_one();
    }

    /// Returns the UID of the pod that has the announced name.
    async fn uid_of(&self, announcement: &Announcement) -> Result<String, AnnounceError> {
        let Announcement { namespace, name, .. } = announcement;
        match timeout(WITHIN, self.pods(namespace).get_opt(name)).await {
            Ok(Ok(Some(found))) => Ok(found.object.metadata.uid),
            Ok(Ok(None)) => Err(unknown("not told", announcement)),
            Ok(Err(error)) => {
                tracing::warn!(%error, namespace, name, "asking for an announced pod");
                Err(AnnounceError::NotReady)
            }
            Err(_elapsed) => Err(AnnounceError::NotReady),
        }
    }

    async fn decide(
        &self,
        record: &PodRecord,
        announcement: Announcement,
        deadline: Instant,
    ) -> Result<Decision, AnnounceError> {
        let Announcement { namespace, name, netns, addresses, .. } = announcement;
        let is_same = *record.namespace == *namespace && *record.name == *name;
        if !is_same || record.node != self.node {
            let actual = format!("{}/{}", record.namespace, record.name);
            let node = record.node.to_string();
            return Err(AnnounceError::Mismatch { uid: record.uid.to_string(), actual, node });
        }
        if let Some(Standing::Outside(why)) = record.standing {
            return Ok(Decision::Outside(why));
        }
        let announced = Announced { uid: Arc::clone(&record.uid), netns, addresses };
        self.hub.cluster().announce(announced.clone());
        self.hub.hurry.notify_one();
        let mut snapshots = self.hub.snapshots.subscribe();
        let workload = WorkloadUid(announced.uid);
        let is_in = snapshots.wait_for(|snapshot| {
            let member = snapshot.as_ref().and_then(|snapshot| snapshot.member(&workload));
            member.is_some_and(|member| {
                let pod = &member.workload;
                pod.in_mesh
                    && pod.netns.as_deref() == Some(&announced.netns)
                    && !pod.addresses.is_empty()
            })
        });
        match timeout_at(deadline, is_in).await {
            Ok(Ok(_)) => Ok(Decision::Enrolled(workload)),
            Ok(Err(_ended)) => Err(AnnounceError::NotReady),
            Err(_elapsed) => Err(AnnounceError::NotTaken(format!("{namespace}/{name}"))),
        }
    }

    /// The pod as soon as it and its namespace are known. The API server has another UID for a static pod than the
    /// runtime.
    async fn record(&self, uid: &str, announcement: &Announcement) -> PodRecord {
        let Announcement { namespace, name, .. } = announcement;
        let mirror = self.hub.cluster().mirror_of(uid, namespace, name);
        let uid = mirror.as_deref().unwrap_or(uid);
        if let Ok(record) = timeout(WATCH_TIME, self.heard(uid)).await {
            return record;
        }
        let found = self.ask(uid, announcement).await;
        self.heard(found.as_deref().unwrap_or(uid)).await
    }

    /// Waits until a pod and its namespace are known, and returns the pod.
    async fn heard(&self, uid: &str) -> PodRecord {
        loop {
            if let Some(record) = self.known(uid) {
                return record;
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn pods(&self, namespace: &str) -> Api<Watched<object::Pod>> {
        Api::namespaced_with(self.client.clone(), namespace, &resource::PODS.api(0))
    }

    fn known(&self, uid: &str) -> Option<PodRecord> {
        if !self.hub.is_complete() {
            return None;
        }
        self.hub.cluster().pod(uid).filter(|record| record.standing.is_some())
    }

    /// The watch may be late; the API server is not. Answers the UID that it has for the pod.
    async fn ask(
        &self,
        uid: &str,
        Announcement { namespace, name, .. }: &Announcement,
    ) -> Option<String> {
        let namespaces: Api<Watched<object::Namespace>> =
            Api::all_with(self.client.clone(), &resource::NAMESPACES.api(0));
        // The namespace comes first, because the pod's standing depends on it.
        if let Ok(Some(found)) = namespaces.get_opt(namespace).await {
            found.object.keep(&mut self.hub.cluster());
        }
        match self.pods(namespace).get_opt(name).await {
            Ok(Some(Watched { object: pod, .. }))
                if pod.metadata.uid == uid || pod.static_uid() == Some(uid) =>
            {
                let mut cluster = self.hub.cluster();
                // What the watch has told meanwhile may be newer.
                if cluster.pod(&pod.metadata.uid).is_none() {
                    pod.keep(&mut cluster);
                }
                Some(pod.metadata.uid)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, namespace, name, "asking for an announced pod");
                None
            }
        }
    }
}

fn unknown(uid: &str, Announcement { namespace, name, .. }: &Announcement) -> AnnounceError {
    AnnounceError::UnknownPod {
        namespace: namespace.clone(),
        name: name.clone(),
        uid: uid.to_owned(),
    }
}
