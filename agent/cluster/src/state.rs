//! What is known of a cluster, and the snapshots made of it.

mod direct;
mod kept;
mod pods;
mod policies;
mod saved;
mod services;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use sluice_mesh::{BuildError, Enrolment, Labels, Snapshot, SnapshotBuilder};

pub use kept::Kept;
pub use saved::RestoreError;

pub use self::policies::PolicyStanding;
use self::{pods::Pods, policies::Policies, services::Services};
use crate::{
    Finding, Marks, Settings, Standing,
    facts::{Name, PodFacts, RuleFacts},
    intern::Interner,
};

/// Everything that is known about a cluster, by kind.
#[derive(Debug)]
pub struct Cluster {
    settings: Settings,
    names: Interner,
    namespaces: BTreeMap<Arc<str>, NamespaceFacts>,
    zones: BTreeMap<Arc<str>, Arc<str>>,
    pods: Pods,
    services: Services,
    policies: Policies,
    rules: BTreeMap<Name, RuleFacts>,
    rules_changed: bool,
    /// Whether the last snapshot was provisional.
    was_provisional: bool,
    /// Counts changes of namespaces, policies and rules, which decide what is let through.
    decisions: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct NamespaceFacts {
    labels: Labels,
    /// Whether the namespace was deleted while pods of it are still known. Its labels count until they are gone,
    /// because the watches of the two kinds are not in step.
    gone: bool,
}

/// What a CNI plugin says of a pod before the API server does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announced {
    /// UID of the pod.
    pub uid: Arc<str>,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Addresses that it was given.
    pub addresses: Vec<IpAddr>,
}

/// What is known of a pod, for those who act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRecord {
    /// Its UID.
    pub uid: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its service account.
    pub account: Arc<str>,
    /// Name of its node; empty until it is scheduled.
    pub node: Arc<str>,
    /// Whether it belongs to the mesh; `None` while its namespace is not known.
    pub standing: Option<Standing>,
    /// Which annotations it carries that say that it is captured.
    pub marks: Marks,
}

/// A snapshot, and the remarks on the objects that it was made of.
#[derive(Clone, Debug)]
pub struct View {
    /// The mesh.
    pub snapshot: Arc<Snapshot>,
    /// Remarks on objects other than policies.
    pub findings: Vec<Finding>,
    /// Remarks on policies in force.
    pub policies: Vec<sluice_policy::Finding>,
    /// Every known policy, and whether it is in force.
    pub standings: Arc<[PolicyStanding]>,
}

// === impl Cluster ===

impl Cluster {
    /// Creates a cluster of which nothing is known.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            names: Interner::default(),
            namespaces: BTreeMap::new(),
            zones: BTreeMap::new(),
            pods: Pods::default(),
            services: Services::default(),
            policies: Policies::default(),
            rules: BTreeMap::new(),
            rules_changed: true,
            was_provisional: false,
            decisions: 0,
        }
    }

    /// Takes over what a CNI plugin says. It counts until it is withdrawn, or the pod's node reports
    /// other addresses than it does now.
    pub fn announce(&mut self, announced: Announced) {
        self.pods.announce(announced);
    }

    /// Forgets what a CNI plugin said of a pod.
    pub fn withdraw(&mut self, uid: &str) {
        self.pods.withdraw(uid);
    }

    /// Says whether the mesh is being taken down: while it is, no pod belongs to it.
    pub fn set_leaving(&mut self, leaving: bool) {
        if std::mem::replace(&mut self.settings.leaving, leaving) == leaving {
            return;
        }
        // Makes a new view even of an empty cluster.
        self.rules_changed = true;
        self.pods.touch(|_| true);
        for name in self.namespaces.keys() {
            self.services.touch_namespace(name);
        }
    }

    /// Returns whether the mesh is being taken down.
    pub fn is_leaving(&self) -> bool {
        self.settings.leaving
    }

    /// Returns the pod with this UID, unless it is unknown or has ended.
    pub fn pod(&self, uid: &str) -> Option<PodRecord> {
        let facts = self.pods.facts(uid)?;
        let standing = self
            .namespaces
            .get(&facts.namespace)
            .map(|namespace| Standing::of(facts, &namespace.labels, &self.settings));
        Some(PodRecord {
            uid: Arc::clone(&facts.uid),
            namespace: Arc::clone(&facts.namespace),
            name: Arc::clone(&facts.name),
            account: Arc::clone(&facts.account),
            node: Arc::clone(&facts.node),
            standing,
            marks: facts.marks,
        })
    }

    /// The UID of a static pod's mirror, which is the one that the API server has for the pod.
    pub fn mirror_of(&self, static_uid: &str, namespace: &str, name: &str) -> Option<Arc<str>> {
        let is_meant = |facts: &&PodFacts| {
            facts.static_uid.as_deref() == Some(static_uid)
                && *facts.namespace == *namespace
                && *facts.name == *name
        };
        self.pods.all().find(is_meant).map(|facts| Arc::clone(&facts.uid))
    }

    /// Namespace, service account and node of every pod that is bound to a node and has not ended.
    pub fn bound(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let bound = self.pods.all().filter(|facts| !facts.node.is_empty());
        bound.map(|facts| (&*facts.namespace, &*facts.account, &*facts.node))
    }

    /// Returns every pod on a node that has not ended.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = PodRecord> {
        self.pods.on(node).filter_map(|uid| self.pod(uid))
    }

    /// Returns how many pods have not ended.
    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// Returns a count of the changes of namespaces, policies and rules. Whoever keeps [`Cluster::rules_text`] writes
    /// it anew when the count differs.
    pub fn decisions(&self) -> u64 {
        self.decisions
    }

    /// Returns a new view if anything that matters to the mesh has changed since the last one. `provisional` says that
    /// objects may be missing, because the state was remembered from an earlier run and the API server was not heard
    /// yet.
    ///
    /// # Errors
    ///
    /// No object can cause one; the caller should then keep the last view.
    pub fn build(&mut self, provisional: bool) -> Result<Option<View>, BuildError> {
        let affected = self.policies.compile(&self.settings);
        self.forget_namespaces();
        let enrolment = self.settings.enrolment.clone();
        let namespaces = &self.namespaces;
        let is_leaving = self.settings.leaving;
        let is_enrolled = |namespace: &str| {
            !is_leaving
                && namespaces.get(namespace).is_some_and(|namespace| {
                    enrolment.decide(&namespace.labels, &BTreeMap::new()) == Enrolment::Enrolled
                })
        };
        let known = pods::Known {
            settings: &self.settings,
            zones: &self.zones,
            labels: &|namespace| namespaces.get(namespace).map(|namespace| &namespace.labels),
            policies: self.policies.set(),
        };
        let pods_changed = self.pods.refresh(&known, &affected);
        for uid in self.pods.take_host_pods() {
            self.services.touch_endpoint(&uid);
        }
        let services_changed = self.services.refresh(&self.pods, &is_enrolled, &mut self.names);
        let rules_changed = std::mem::take(&mut self.rules_changed);
        let is_settled = std::mem::replace(&mut self.was_provisional, provisional) == provisional;
        self.decisions += u64::from(affected.is_any() || rules_changed);
        if is_settled && !(affected.is_any() || pods_changed || services_changed || rules_changed) {
            return Ok(None);
        }
        let mut findings = self.pods.findings();
        let services = self.services.accepted(&self.pods, &mut findings);
        let direct = direct::destinations(&self.rules, &services, &self.settings, &mut findings);
        findings.sort();
        let builder = SnapshotBuilder {
            workloads: Vec::new(),
            members: self.pods.members().cloned().collect(),
            services,
            policies: self.policies.set().clone(),
            disputed: self.pods.disputed().clone(),
            direct,
            provisional,
            leaving: self.settings.leaving,
        };
        let snapshot = Arc::new(builder.build(self.settings.trust_domain.clone())?);
        let policies = self.policies.remarks().to_vec();
        let standings = Arc::clone(self.policies.standings());
        Ok(Some(View { snapshot, findings, policies, standings }))
    }

    fn forget_namespaces(&mut self) {
        let gone: Vec<_> = self
            .namespaces
            .iter()
            .filter(|(name, namespace)| namespace.gone && !self.pods.any_in(name))
            .map(|(name, _)| Arc::clone(name))
            .collect();
        for name in gone {
            self.namespaces.remove(&name);
        }
    }
}
