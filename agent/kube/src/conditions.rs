//! Writes into each policy's status whether it is enforced as written.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
    runtime::watcher::Event,
};
use serde_json::json;
use sluice_policy::ObjectKind;
use sluice_spiffe::TrustDomain;
use tokio::sync::Notify;

use crate::{
    ApiServer, Lead,
    client::{ApiFault, within},
    events::{self, Complaints},
    judgement::{Judgement, Key, Policy, judge},
    resource::{AUTHORIZATION_POLICIES, PEER_AUTHENTICATIONS, Resource},
};

/// The controller's name as a writer of fields.
pub(crate) const MANAGER: &str = "sluice-controller";

/// How long changes are gathered before they are written.
const CALM: Duration = Duration::from_millis(200);
/// How long to wait before a kind that the cluster does not know is asked for again.
const MISSING_PAUSE: Duration = Duration::from_secs(15);
/// How long to wait before a failed write is tried again.
const RETRY: Duration = Duration::from_secs(5);
const KINDS: [(ObjectKind, &Resource); 2] = [
    (ObjectKind::AuthorizationPolicy, &AUTHORIZATION_POLICIES),
    (ObjectKind::PeerAuthentication, &PEER_AUTHENTICATIONS),
];

/// Keeps the condition `sluice.dev/Accepted` of every policy true to what nodes make of it.
pub struct PolicyReports {
    server: ApiServer,
    root_namespace: String,
    trust_domain: TrustDomain,
    shared: Arc<Shared>,
    lead: Lead,
}

#[derive(Default)]
struct Shared {
    known: Mutex<Known>,
    changed: Notify,
}

#[derive(Default)]
struct Known {
    policies: BTreeMap<Key, Policy>,
    /// Kinds that were listed, each with the index of the API version that has it.
    listed: BTreeMap<ObjectKind, usize>,
}

// === impl PolicyReports ===

impl PolicyReports {
    /// Starts to follow the policies; writes while `lead` is true. Policies of `root_namespace` are those of the
    /// whole mesh, whose identities are of `trust_domain`.
    pub fn start(server: &ApiServer, root_namespace: &str, trust_domain: &TrustDomain, lead: Lead) {
        let shared = Arc::new(Shared::default());
        for (kind, resource) in KINDS {
            tokio::spawn(follow(server.clone(), kind, resource, Arc::clone(&shared)));
        }
        let reports = Self {
            server: server.clone(),
            root_namespace: root_namespace.to_owned(),
            trust_domain: trust_domain.clone(),
            shared,
            lead,
        };
        tokio::spawn(reports.run());
    }

    async fn run(mut self) {
        let mut complaints = Complaints::default();
        loop {
            let failed = *self.lead.borrow_and_update() && !self.write_all(&mut complaints).await;
            let retry = if failed { RETRY } else { Duration::from_hours(1) };
            tokio::select! {
                () = self.shared.changed.notified() => {}
                changed = self.lead.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(retry) => {}
            }
            tokio::time::sleep(CALM).await;
        }
    }

    /// Writes what has changed. Returns `false` if a write failed.
    async fn write_all(&self, complaints: &mut Complaints) -> bool {
        let due = {
            let known = self.shared.known();
            // Policies of one kind would be judged without those of the other.
            if known.listed.len() < KINDS.len() {
                return true;
            }
            known.due(&self.root_namespace, &self.trust_domain)
        };
        let mut all = true;
        for (key, policy, version, judgement) in due {
            if !*self.lead.borrow() {
                return true;
            }
            all &= self.write(&key, &policy, version, &judgement, complaints).await;
        }
        all
    }

    /// Writes all conditions, with the version of the policy that they were read from. The CRDs make the list one
    /// value, without keys to merge by; the version keeps us from undoing what another controller writes meanwhile.
    /// Returns `false` if the write failed.
    async fn write(
        &self,
        key: &Key,
        policy: &Policy,
        version: usize,
        judgement: &Judgement,
        complaints: &mut Complaints,
    ) -> bool {
        let Some(conditions) = policy.conditions_with(judgement, Timestamp::now()) else {
            return true;
        };
        let resource = KINDS.iter().find(|(kind, _)| *kind == key.kind);
        let Some((_, resource)) = resource else { return true };
        let (client, kind) = (self.server.0.clone(), resource.api(version));
        let api: Api<DynamicObject> = Api::namespaced_with(client, &key.namespace, &kind);
        let patch = json!({
            "metadata": { "uid": policy.uid, "resourceVersion": policy.version },
            "status": { "conditions": conditions },
        });
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..Default::default() };
        let what = "writing the status of policies";
        let patch = Patch::Merge(&patch);
        match within(api.patch_status(&key.name, &params, &patch)).await {
            Ok(_) => {
                complaints.works(what);
                tracing::info!(
                    policy = format!("{} {}/{}", key.kind, key.namespace, key.name),
                    accepted = judgement.is_accepted,
                    reason = judgement.reason,
                    said = judgement.message,
                    "wrote the status",
                );
                true
            }
            // The policy is gone or has changed since: the watch says so, and it is judged again.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => true,
            Err(error) => {
                let needs = format!("patch on {}/status", resource.name());
                complaints.fails(what, &ApiFault::new(what, &needs, &error).to_string());
                false
            }
        }
    }
}

async fn follow(
    server: ApiServer,
    kind: ObjectKind,
    resource: &'static Resource,
    shared: Arc<Shared>,
) {
    let what = format!("following {}", resource.name());
    let needs = format!("get, list and watch on {}", resource.name());
    let mut attempt = 0;
    loop {
        let api: Api<DynamicObject> = Api::all_with(server.0.clone(), &resource.api(attempt));
        let mut listed = None;
        let version = attempt;
        events::follow(api, "", (&what, &needs), |event| {
            if shared.known().take(kind, version, &mut listed, event) {
                shared.changed.notify_one();
            }
        })
        .await;
        attempt += 1;
        if attempt.is_multiple_of(resource.version_count()) {
            // A cluster without the kind has no policies of it.
            shared.known().list(kind, version, BTreeMap::new());
            shared.changed.notify_one();
            tokio::time::sleep(MISSING_PAUSE).await;
        }
    }
}

// === impl Shared ===

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Known ===

impl Known {
    /// Takes over an event. Returns whether something may have to be written.
    fn take(
        &mut self,
        kind: ObjectKind,
        version: usize,
        listed: &mut Option<BTreeMap<Key, Policy>>,
        event: Event<DynamicObject>,
    ) -> bool {
        match event {
            Event::Init => *listed = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                if let (Some(listed), Some((key, policy))) = (listed, self.read(kind, &object)) {
                    listed.insert(key, policy);
                }
            }
            Event::InitDone => {
                let Some(listed) = listed.take() else { return false };
                self.list(kind, version, listed);
                return true;
            }
            Event::Apply(object) => {
                if let Some((key, policy)) = self.read(kind, &object) {
                    self.policies.insert(key, policy);
                }
                return true;
            }
            Event::Delete(object) => {
                if let Some(key) = key_of(kind, &object) {
                    self.policies.remove(&key);
                }
                return true;
            }
        }
        false
    }

    fn list(&mut self, kind: ObjectKind, version: usize, listed: BTreeMap<Key, Policy>) {
        self.policies.retain(|key, _| key.kind != kind);
        self.policies.extend(listed);
        self.listed.insert(kind, version);
    }

    fn read(&self, kind: ObjectKind, object: &DynamicObject) -> Option<(Key, Policy)> {
        let key = key_of(kind, object)?;
        let before = self.policies.get(&key).cloned();
        let value = serde_json::to_value(object).ok()?;
        let policy = Policy::read(&key, &value, before);
        Some((key, policy))
    }

    /// Policies whose status does not say what it should.
    fn due(
        &self,
        root_namespace: &str,
        trust_domain: &TrustDomain,
    ) -> Vec<(Key, Policy, usize, Judgement)> {
        let now = Timestamp::now();
        let mut due = Vec::new();
        for (key, judgement) in judge(&self.policies, root_namespace, trust_domain) {
            let policy = self.policies.get(&key);
            let policy = policy.filter(|policy| policy.conditions_with(&judgement, now).is_some());
            let version = self.listed.get(&key.kind).copied().unwrap_or_default();
            due.extend(policy.map(|policy| (key, policy.clone(), version, judgement)));
        }
        due
    }
}

fn key_of(kind: ObjectKind, object: &DynamicObject) -> Option<Key> {
    let metadata = &object.metadata;
    let namespace = metadata.namespace.as_deref()?.into();
    let name = metadata.name.as_deref()?.into();
    Some(Key { kind, namespace, name })
}
