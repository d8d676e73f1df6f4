//! Policies, which are read one by one and compiled together.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sluice_policy::{Compiled, Coverage, PolicyObject, PolicySet, Withheld, foreign_principals};

use crate::{
    Meaning, Settings,
    facts::Name,
    object::{Meta, Policy},
};

/// The annotation that says that a policy is to be checked but not enforced.
const DRY_RUN: &str = "istio.io/dry-run";
const API_VERSION: &str = "security.istio.io/v1";
/// The origin that the reader gives a policy.
const ORIGIN: &str = "kubernetes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Kind {
    Authorization,
    PeerAuthentication,
}

#[derive(Debug, Default)]
pub(crate) struct Policies {
    entries: BTreeMap<(Kind, Name), Entry>,
    set: PolicySet,
    remarks: Vec<sluice_policy::Finding>,
    standings: Arc<[PolicyStanding]>,
    changed: Affected,
}

/// A policy, and whether its newest version is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyStanding {
    /// Its kind, such as `AuthorizationPolicy`.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.generation` of the newest version that was seen; `None` when the object has none.
    pub generation: Option<i64>,
    /// Why that version is not in force, and what is in force instead.
    pub refused: Option<Meaning>,
}

#[derive(Debug)]
struct Entry {
    generation: Option<i64>,
    /// The last version that could be read.
    good: Option<Good>,
    /// What is wrong with the newest version.
    error: Option<String>,
}

#[derive(Debug)]
struct Good {
    text: Box<str>,
    objects: Vec<PolicyObject>,
}

/// Whose policies have changed: everyone's, or those of some namespaces.
#[derive(Debug, Default)]
pub(crate) struct Affected {
    everyone: bool,
    namespaces: BTreeSet<Arc<str>>,
}

// === impl Kind ===

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Authorization => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }
}

// === impl Affected ===

impl Affected {
    pub(crate) fn is_any(&self) -> bool {
        self.everyone || !self.namespaces.is_empty()
    }

    pub(crate) fn covers(&self, namespace: &str) -> bool {
        self.everyone || self.namespaces.contains(namespace)
    }
}

// === impl Policies ===

impl Policies {
    pub(crate) fn keep(&mut self, kind: Kind, name: Name, policy: &Policy) {
        let text = written(kind, policy);
        self.take(kind, name, text);
    }

    /// Takes over the text of a policy, if it can be read.
    pub(crate) fn take(&mut self, kind: Kind, name: Name, text: String) {
        let namespace = Arc::clone(&name.namespace);
        let entry = self.entries.entry((kind, name)).or_insert_with(Entry::unknown);
        if entry.error.is_none() && entry.good.as_ref().is_some_and(|good| *good.text == *text) {
            return;
        }
        entry.generation = generation(&text);
        match sluice_policy::read(ORIGIN, &text) {
            Ok(objects) => {
                entry.good = Some(Good { text: text.into(), objects });
                entry.error = None;
            }
            Err(error) => entry.error = Some(error.to_string()),
        }
        self.changed.namespaces.insert(namespace);
    }

    pub(crate) fn forget(&mut self, kind: Kind, name: &Name) {
        if self.entries.remove(&(kind, name.clone())).is_some() {
            self.changed.namespaces.insert(Arc::clone(&name.namespace));
        }
    }

    pub(crate) fn any(&self, kind: Kind) -> bool {
        self.entries.keys().any(|(of, _)| *of == kind)
    }

    pub(crate) fn retain(&mut self, kind: Kind, listed: impl Fn(&Name) -> bool) {
        let gone: Vec<_> = self
            .entries
            .keys()
            .filter(|(of, name)| *of == kind && !listed(name))
            .map(|(_, name)| name.clone())
            .collect();
        for name in gone {
            self.forget(kind, &name);
        }
    }

    /// Compiles the policies into a new set if any has changed. Returns whom that affects.
    pub(crate) fn compile(&mut self, settings: &Settings) -> Affected {
        let mut affected = std::mem::take(&mut self.changed);
        if !affected.is_any() {
            return affected;
        }
        affected.everyone |= affected.namespaces.contains(settings.root_namespace.as_str());
        let objects: Vec<_> = self
            .entries
            .values()
            .filter_map(|entry| entry.good.as_ref())
            .flat_map(|good| good.objects.iter().cloned())
            .collect();
        let withheld: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.good.is_none())
            .map(|((kind, name), _)| Withheld {
                origin: format!("{} {}/{}", kind.name(), name.namespace, name.name).into(),
                coverage: Coverage::Namespaces([name.namespace.to_string()].into()),
            })
            .collect();
        let Compiled { set, mut findings } =
            PolicySet::compile(&objects, &withheld, &settings.root_namespace);
        findings.extend(foreign_principals(&objects, &settings.trust_domain));
        self.set = set;
        self.remarks = findings;
        self.standings = self.entries.iter().map(|(key, entry)| entry.standing(key)).collect();
        affected
    }

    pub(crate) fn set(&self) -> &PolicySet {
        &self.set
    }

    /// Returns the remarks on policies in force.
    pub(crate) fn remarks(&self) -> &[sluice_policy::Finding] {
        &self.remarks
    }

    /// Returns every known policy, readable or not.
    pub(crate) fn standings(&self) -> &Arc<[PolicyStanding]> {
        &self.standings
    }

    /// Returns the texts to remember: the last good one of each policy. A policy without one is remembered as such, so
    /// that it still denies after a restart.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (Kind, &Name, Option<&str>)> {
        self.entries
            .iter()
            .map(|((kind, name), entry)| (*kind, name, entry.good.as_ref().map(|good| &*good.text)))
    }

    /// Notes a policy that an earlier run knew to exist but could not read.
    pub(crate) fn withhold(&mut self, kind: Kind, name: Name) {
        self.changed.namespaces.insert(Arc::clone(&name.namespace));
        let error = Some("it could not be read before the restart".to_owned());
        self.entries.insert((kind, name), Entry { error, ..Entry::unknown() });
    }
}

// === impl Entry ===

impl Entry {
    fn unknown() -> Self {
        Self { generation: None, good: None, error: None }
    }

    /// Returns what is wrong with the newest version, and what is in force instead.
    fn fault(&self) -> Option<Meaning> {
        let error = self.error.clone()?;
        Some(match self.good {
            Some(_) => Meaning::PolicyKept(error),
            None => Meaning::PolicyDenies(error),
        })
    }

    fn standing(&self, (kind, name): &(Kind, Name)) -> PolicyStanding {
        let Name { namespace, name } = name.clone();
        let refused = self.fault();
        PolicyStanding { kind: kind.name(), namespace, name, generation: self.generation, refused }
    }
}

/// Returns the generation that a policy's text names.
fn generation(text: &str) -> Option<i64> {
    #[derive(Deserialize)]
    struct Head {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        generation: Option<i64>,
    }
    serde_json::from_str::<Head>(text).ok()?.metadata.generation
}

/// Returns the policy in the form that the reader takes, with only the metadata that is read.
fn written(kind: Kind, policy: &Policy) -> String {
    let Meta { name, namespace, creation_timestamp, annotations, generation, .. } =
        &policy.metadata;
    let mut metadata = serde_json::json!({ "name": name, "namespace": namespace });
    let mut set = |key: &str, value: serde_json::Value| {
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert(key.to_owned(), value);
        }
    };
    if !creation_timestamp.is_empty() {
        set("creationTimestamp", creation_timestamp.as_str().into());
    }
    if *generation > 0 {
        set("generation", (*generation).into());
    }
    if let Some(dry_run) = annotations.get(DRY_RUN) {
        set("annotations", serde_json::json!({ DRY_RUN: dry_run }));
    }
    let mut object = serde_json::json!({
        "apiVersion": API_VERSION,
        "kind": kind.name(),
        "metadata": metadata,
    });
    if let (Some(spec), Some(object)) = (&policy.spec, object.as_object_mut()) {
        object.insert("spec".to_owned(), spec.clone());
    }
    object.to_string()
}
