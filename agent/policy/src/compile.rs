//! Compiles policy objects into the policies that bind each workload.

use std::{collections::HashMap, sync::Arc};

use crate::{
    Coverage, Finding, ObjectId, Place, PolicyObject, Severity, WorkloadPolicy,
    decide::Bound,
    finding::Meaning,
    mtls::PortModes,
    object::{Action, Authorization, Labels, PeerAuthentication, Spec},
};

/// All policies of a mesh. Cloning is cheap. The default holds none: everything is allowed, with mutual
/// TLS or without, as in Istio.
#[derive(Debug, Clone, Default)]
pub struct PolicySet(Arc<Index>);

/// A compiled set and the remarks on its objects.
#[derive(Debug)]
pub struct Compiled {
    /// The policies to enforce.
    pub set: PolicySet,
    /// Remarks on its objects, in order of their places.
    pub findings: Vec<Finding>,
}

/// A source of policies that cannot be read and of which no earlier version is known. Every connection to the
/// workloads that it could cover is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// Name of the source, which refusals cite.
    pub origin: Arc<str>,
    /// The workloads that it could cover.
    pub coverage: Coverage,
}

#[derive(Debug, Default)]
struct Index {
    root_namespace: String,
    by_namespace: HashMap<String, Scope>,
    /// Origin of a withheld source that could cover the whole mesh.
    unknown: Option<Arc<str>>,
    objects: Vec<(ObjectId, Place)>,
}

/// The objects of one namespace.
#[derive(Debug, Default)]
struct Scope {
    /// Oldest first.
    peers: Vec<Peer>,
    authorizations: Vec<Arc<Authorization>>,
    unknown: Option<Arc<str>>,
}

#[derive(Debug)]
struct Peer {
    id: ObjectId,
    place: Place,
    spec: Arc<PeerAuthentication>,
}

// === impl PolicySet ===

impl PolicySet {
    /// Builds the index. Objects without a selector apply to their namespace, those of the root namespace
    /// to the whole mesh; a selector in the root namespace selects workloads of every namespace for an
    /// `AuthorizationPolicy` and nothing for a `PeerAuthentication` (both as in Istio).
    ///
    /// Of several `PeerAuthentication` at one level, the one with the oldest `creationTimestamp` wins. One without a
    /// timestamp counts as newer than all that have one; names, then namespaces, break ties.
    pub fn compile(
        objects: &[PolicyObject],
        withheld: &[Withheld],
        root_namespace: &str,
    ) -> Compiled {
        let mut index = Index { root_namespace: root_namespace.to_owned(), ..Index::default() };
        let mut findings: Vec<Finding> =
            objects.iter().flat_map(|object| object.findings.iter().cloned()).collect();
        let mut oldest_first: Vec<&PolicyObject> = objects.iter().collect();
        oldest_first.sort_by_key(|object| {
            let PolicyObject { created, id, .. } = object;
            (created.is_none(), created.clone(), id.name.clone(), id.namespace.clone())
        });
        for object in oldest_first {
            index.add(object);
        }
        for source in withheld {
            index.withhold(source);
        }
        for (namespace, scope) in &index.by_namespace {
            scope.remark(namespace == root_namespace, &mut findings);
        }
        findings.sort_by(|a, b| {
            (&a.place, &a.field, &a.meaning).cmp(&(&b.place, &b.field, &b.meaning))
        });
        Compiled { set: Self(Arc::new(index)), findings }
    }

    /// Returns the policies that bind one workload.
    pub fn for_workload(&self, namespace: &str, labels: &Labels) -> WorkloadPolicy {
        let index = &*self.0;
        let root = index.by_namespace.get(&index.root_namespace);
        // Without this, the root namespace's own workloads would be bound twice.
        let own = index.by_namespace.get(namespace).filter(|_| namespace != index.root_namespace);
        let modes = PortModes::resolve(
            root.and_then(Scope::default_peer),
            own.and_then(Scope::default_peer),
            own.and_then(|scope| scope.selecting_peer(labels)),
        );
        let unknown = index.unknown.clone().or_else(|| own.and_then(|scope| scope.unknown.clone()));
        let mut bound = Bound { unknown, modes, ..Bound::default() };
        let scopes = root.into_iter().chain(own);
        for policy in scopes.flat_map(|scope| &scope.authorizations) {
            if selects(&policy.selector, labels) {
                match policy.action {
                    Action::Allow => bound.allow.push(Arc::clone(policy)),
                    Action::Deny => bound.deny.push(Arc::clone(policy)),
                }
            }
        }
        WorkloadPolicy::new(bound)
    }

    /// Returns every object of the set and where it was read, oldest first.
    pub fn objects(&self) -> &[(ObjectId, Place)] {
        &self.0.objects
    }
}

// === impl Index ===

impl Index {
    fn add(&mut self, object: &PolicyObject) {
        self.objects.push((object.id.clone(), object.place.clone()));
        let scope = self.by_namespace.entry(object.id.namespace.as_ref().to_owned()).or_default();
        match &object.spec {
            Spec::Authorization(policy) if policy.dry_run => {}
            Spec::Authorization(policy) => scope.authorizations.push(Arc::clone(policy)),
            Spec::PeerAuthentication(spec) => scope.peers.push(Peer {
                id: object.id.clone(),
                place: object.place.clone(),
                spec: Arc::clone(spec),
            }),
        }
    }

    fn withhold(&mut self, source: &Withheld) {
        match &source.coverage {
            Coverage::Mesh => self.unknown = Some(Arc::clone(&source.origin)),
            Coverage::Namespaces(namespaces) => {
                for namespace in namespaces {
                    if *namespace == self.root_namespace {
                        self.unknown = Some(Arc::clone(&source.origin));
                    }
                    self.by_namespace.entry(namespace.clone()).or_default().unknown =
                        Some(Arc::clone(&source.origin));
                }
            }
        }
    }
}

// === impl Scope ===

impl Scope {
    fn default_peer(&self) -> Option<&PeerAuthentication> {
        self.peers.iter().map(|peer| &*peer.spec).find(|spec| spec.selector.is_empty())
    }

    fn selecting_peer(&self, labels: &Labels) -> Option<&PeerAuthentication> {
        let applies = |spec: &&PeerAuthentication| {
            !spec.selector.is_empty() && selects(&spec.selector, labels)
        };
        self.peers.iter().map(|peer| &*peer.spec).find(applies)
    }

    fn remark(&self, is_root: bool, findings: &mut Vec<Finding>) {
        for (position, peer) in self.peers.iter().enumerate() {
            let mut older = self.peers.iter().take(position);
            let meaning = if is_root && !peer.spec.selector.is_empty() {
                Some(Meaning::SelectorInRootNamespace)
            } else {
                older
                    .find(|older| may_overlap(&older.spec.selector, &peer.spec.selector))
                    .map(|older| Meaning::OlderWins(older.id.clone()))
            };
            findings.extend(meaning.map(|meaning| Finding {
                object: peer.id.clone(),
                place: peer.place.clone(),
                field: "spec.selector".to_owned(),
                severity: Severity::Warning,
                meaning,
            }));
        }
    }
}

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Returns whether two selectors are of the same level and some workload could match both.
fn may_overlap(a: &Labels, b: &Labels) -> bool {
    a.is_empty() == b.is_empty()
        && a.iter().all(|(key, value)| b.get(key).is_none_or(|other| other == value))
}
