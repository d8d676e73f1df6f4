//! Pods, and which of them owns an address.

mod claims;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use sluice_mesh::{Labels, Member, Workload, WorkloadUid};
use sluice_policy::PolicySet;
use sluice_spiffe::WorkloadName;

use self::claims::Claims;
use super::{Announced, policies::Affected};
use crate::{
    Finding, Meaning, ObjectName, Outside, Settings, Standing, annotation, facts::PodFacts, object,
};

#[derive(Debug, Default)]
pub(crate) struct Pods {
    /// Boxed, because a hash table keeps room for more entries than it has.
    entries: HashMap<Arc<str>, Box<Entry>>,
    announced: HashMap<Arc<str>, Heard>,
    claims: Claims,
    /// Pods that have to be judged again.
    dirty: HashSet<Arc<str>>,
    /// Pods that use their node's network and came or went.
    of_host: Vec<Arc<str>>,
    /// Addresses that are given to nobody, and why.
    disputed: HashMap<IpAddr, Arc<str>>,
}

#[derive(Debug)]
struct Entry {
    facts: PodFacts,
    uid: WorkloadUid,
    /// The pod as the mesh knows it; `None` while its namespace, node or address is unknown, if it uses the node's
    /// network, or if it can have no identity.
    member: Option<Arc<Member>>,
    /// What is to be said of its part in the mesh, and of which field.
    remark: Option<(String, Meaning)>,
}

/// What a plugin has said of a pod.
#[derive(Debug)]
struct Heard {
    announced: Announced,
    /// Addresses that the pod's node reported then.
    reported: Vec<IpAddr>,
}

/// What a pod's place in the mesh depends on besides the pod itself.
pub(crate) struct Known<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) zones: &'a BTreeMap<Arc<str>, Arc<str>>,
    /// Looks up the labels of a namespace.
    pub(crate) labels: &'a dyn Fn(&str) -> Option<&'a Labels>,
    pub(crate) policies: &'a PolicySet,
}

// === impl Known ===

impl Known<'_> {
    /// Where a pod stands; `None` while its namespace is not known.
    fn standing(&self, facts: &PodFacts) -> Option<Standing> {
        let labels = (self.labels)(&facts.namespace)?;
        Some(Standing::of(facts, labels, self.settings))
    }
}

// === impl Pods ===

impl Pods {
    pub(crate) fn keep(&mut self, facts: PodFacts) {
        let uid = Arc::clone(&facts.uid);
        if self.entries.get(&uid).is_some_and(|entry| entry.facts == facts) {
            return;
        }
        if let Some(entry) = self.entries.get_mut(&uid) {
            entry.facts = facts;
        } else {
            let shared = WorkloadUid(Arc::clone(&uid));
            self.of_host.extend(facts.host_network.then(|| Arc::clone(&uid)));
            let entry = Entry { facts, uid: shared, member: None, remark: None };
            self.entries.insert(Arc::clone(&uid), Box::new(entry));
        }
        self.claim(&uid);
    }

    pub(crate) fn forget(&mut self, uid: &str) {
        self.announced.remove(uid);
        if let Some((uid, entry)) = self.entries.remove_entry(uid) {
            self.of_host.extend(entry.facts.host_network.then(|| Arc::clone(&uid)));
            self.claim(&uid);
        }
    }

    pub(crate) fn retain(&mut self, listed: &HashSet<String>) {
        let gone: Vec<_> =
            self.entries.keys().filter(|uid| !listed.contains(&***uid)).cloned().collect();
        for uid in gone {
            self.forget(&uid);
        }
    }

    pub(crate) fn announce(&mut self, announced: Announced) {
        let uid = Arc::clone(&announced.uid);
        if self.announced.get(&uid).is_some_and(|heard| heard.announced == announced) {
            return;
        }
        let reported = self.facts(&uid).map(|facts| facts.addresses.clone()).unwrap_or_default();
        self.announced.insert(Arc::clone(&uid), Heard { announced, reported });
        self.claim(&uid);
    }

    pub(crate) fn withdraw(&mut self, uid: &str) {
        if let Some(Heard { announced, .. }) = self.announced.remove(uid) {
            self.claim(&announced.uid);
        }
    }

    /// Notes which addresses a pod claims now, and marks the pod and its rivals for them as dirty.
    fn claim(&mut self, uid: &Arc<str>) {
        let addresses =
            self.entries.get(uid).map(|entry| self.addresses(entry)).unwrap_or_default();
        self.dirty.insert(Arc::clone(uid));
        self.dirty.extend(self.claims.set(uid, &addresses));
    }

    /// The plugin's word counts until the pod's node reports other addresses than before it: while a pod has no
    /// sandbox, the kubelet goes on reporting those of its last one.
    fn addresses(&self, entry: &Entry) -> Vec<IpAddr> {
        let PodFacts { uid, addresses, host_network, .. } = &entry.facts;
        let is_news = |reported: &Vec<_>| !addresses.is_empty() && addresses != reported;
        match self.announced.get(uid) {
            Some(Heard { announced, reported }) if !host_network && !is_news(reported) => {
                announced.addresses.clone()
            }
            _ => addresses.clone(),
        }
    }

    pub(crate) fn touch(&mut self, which: impl Fn(&PodFacts) -> bool) {
        let touched = self.entries.values().filter(|entry| which(&entry.facts));
        self.dirty.extend(touched.map(|entry| Arc::clone(&entry.facts.uid)));
    }

    pub(crate) fn facts(&self, uid: &str) -> Option<&PodFacts> {
        self.entries.get(uid).map(|entry| &entry.facts)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &PodFacts> {
        self.entries.values().map(|entry| &entry.facts)
    }

    pub(crate) fn on(&self, node: &str) -> impl Iterator<Item = &Arc<str>> {
        self.all().filter(move |facts| &*facts.node == node).map(|facts| &facts.uid)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn any_in(&self, namespace: &str) -> bool {
        self.all().any(|facts| &*facts.namespace == namespace)
    }

    /// Returns the UID in the form that is shared with the pod's workload.
    pub(crate) fn uid(&self, uid: &str) -> Option<WorkloadUid> {
        self.entries.get(uid).map(|entry| entry.uid.clone())
    }

    /// Returns the pods that use their node's network and came or went since the last call.
    pub(crate) fn take_host_pods(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.of_host)
    }

    pub(crate) fn is_host_pod(&self, uid: &str) -> bool {
        self.facts(uid).is_some_and(|facts| facts.host_network)
    }

    /// Returns namespace and name of one of the pods that claim an address.
    pub(crate) fn claimant(&self, address: IpAddr) -> Option<String> {
        let facts = self.facts(self.claims.of(address).first()?)?;
        Some(format!("{}/{}", facts.namespace, facts.name))
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.entries.values().filter_map(|entry| entry.member.as_ref())
    }

    pub(crate) fn disputed(&self) -> &HashMap<IpAddr, Arc<str>> {
        &self.disputed
    }

    /// Rebuilds what has changed. Returns whether anything changed that the mesh sees.
    pub(crate) fn refresh(&mut self, known: &Known<'_>, affected: &Affected) -> bool {
        let mut changed = false;
        if affected.is_any() {
            self.touch(|facts| affected.covers(&facts.namespace));
        }
        for uid in std::mem::take(&mut self.dirty) {
            // A pod that is gone was a member, or claimed an address that another gets now.
            let Some(entry) = self.entries.get(&uid) else {
                changed = true;
                continue;
            };
            let rebind = affected.covers(&entry.facts.namespace);
            let (member, remark) = self.member(entry, known, rebind);
            let is_same = match (&entry.member, &member) {
                (Some(old), Some(new)) => Arc::ptr_eq(old, new),
                (None, None) => true,
                _ => false,
            };
            changed |= !is_same || entry.remark != remark;
            if let Some(entry) = self.entries.get_mut(&uid) {
                entry.member = member;
                entry.remark = remark;
            }
        }
        let disputed = self.disputes(known);
        changed |= disputed != self.disputed;
        self.disputed = disputed;
        changed
    }

    /// Returns the pod as a member of the mesh, or why it can have no identity. An unchanged pod keeps its member.
    fn member(
        &self,
        entry: &Entry,
        known: &Known<'_>,
        rebind: bool,
    ) -> (Option<Arc<Member>>, Option<(String, Meaning)>) {
        let standing = known.standing(&entry.facts);
        let remark = (standing == Some(Standing::Outside(Outside::Sidecar)))
            .then(|| (annotation::field(object::SIDECAR), Meaning::Sidecar));
        let workload = match standing.and_then(|standing| self.workload(entry, standing, known)) {
            Some(Ok(workload)) => workload,
            Some(Err(error)) => {
                let field = "spec.serviceAccountName".to_owned();
                return (None, Some((field, Meaning::NoIdentity(error))));
            }
            None => return (None, remark),
        };
        let old = entry.member.as_ref().filter(|old| *old.workload == workload);
        let member = match old {
            Some(old) if !rebind => Arc::clone(old),
            _ => {
                let policy =
                    known.policies.for_workload(&workload.account.namespace, &workload.labels);
                let workload =
                    old.map_or_else(|| Arc::new(workload), |old| Arc::clone(&old.workload));
                Arc::new(Member { workload, policy })
            }
        };
        (Some(member), remark)
    }

    fn workload(
        &self,
        entry: &Entry,
        standing: Standing,
        known: &Known<'_>,
    ) -> Option<Result<Workload, String>> {
        let facts = &entry.facts;
        let mut addresses = self.addresses(entry);
        if facts.host_network || facts.node.is_empty() || addresses.is_empty() {
            return None;
        }
        addresses.retain(|address| self.owner(*address) == Some(&facts.uid));
        let account = WorkloadName {
            namespace: facts.namespace.to_string(),
            service_account: facts.account.to_string(),
        };
        let identity = match account.identity(&known.settings.trust_domain) {
            Ok(identity) => identity,
            Err(error) => return Some(Err(error.to_string())),
        };
        let heard = self.announced.get(&facts.uid);
        Some(Ok(Workload {
            uid: entry.uid.clone(),
            static_uid: facts.static_uid.clone(),
            name: facts.name.to_string(),
            account,
            identity,
            labels: Arc::clone(&facts.labels),
            addresses,
            node: facts.node.to_string(),
            zone: known.zones.get(&facts.node).map(ToString::to_string),
            in_mesh: standing == Standing::Enrolled,
            netns: heard.map(|heard| heard.announced.netns.clone()),
            ready: facts.stage.ready,
            bypass: facts.bypass.clone(),
            probe_ports: facts.probe_ports.clone(),
        }))
    }

    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for entry in self.entries.values() {
            let Entry { facts, remark, .. } = &**entry;
            let complaints = facts
                .complaints
                .iter()
                .map(|complaint| (complaint.field.clone(), complaint.meaning.clone()));
            for (field, meaning) in complaints.chain(remark.clone()) {
                findings.push(Finding::new(object_name(facts), field, meaning));
            }
        }
        for address in self.disputed.keys() {
            let claimants = self.claims.of(*address);
            for facts in claimants.iter().filter_map(|uid| self.facts(uid)) {
                let claimants = self.claimants(*address);
                let meaning = Meaning::AddressClash { address: *address, claimants };
                findings.push(Finding::new(object_name(facts), "status.podIPs", meaning));
            }
        }
        findings
    }
}

fn object_name(facts: &PodFacts) -> ObjectName {
    ObjectName {
        kind: "Pod",
        namespace: Arc::clone(&facts.namespace),
        name: Arc::clone(&facts.name),
    }
}
