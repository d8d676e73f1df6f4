//! The known state of a cluster, in a form that can be kept on disk and read again.
//!
//! It has two parts, which are written at different times: a restart must not forget a rule that was in force, while
//! the many pods of other nodes may be a little old.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize, Serializer};

use super::{Cluster, NamespaceFacts, policies::Kind};
use crate::facts::{Name, PodFacts, RuleFacts, ServiceFacts, SliceFacts};

/// The version of the form; others are refused.
const FORMAT: u32 = 1;

/// Why a saved state is refused.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The text is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// The text was written in another version of the form.
    #[error("it has format {0}, and this version reads format {FORMAT}")]
    Format(u32),
}

/// What decides who is let through: labels of namespaces, policies, rules.
#[derive(Serialize, Deserialize)]
struct Rules {
    format: u32,
    namespaces: BTreeMap<Arc<str>, BTreeMap<String, String>>,
    policies: Vec<SavedPolicy>,
    destinations: Vec<RuleFacts>,
}

#[derive(Serialize, Deserialize)]
struct SavedPolicy {
    kind: Kind,
    name: Name,
    /// The last good text; `None` if the policy could never be read.
    text: Option<String>,
}

/// The nodes, pods and services.
#[derive(Deserialize)]
struct Members {
    format: u32,
    zones: BTreeMap<Arc<str>, Arc<str>>,
    pods: Vec<PodFacts>,
    services: Vec<ServiceFacts>,
    slices: Vec<SliceFacts>,
}

/// [`Members`] for writing, which borrows instead of copying.
#[derive(Serialize)]
struct MembersNow<'a> {
    format: u32,
    zones: &'a BTreeMap<Arc<str>, Arc<str>>,
    pods: Pods<'a>,
    services: Services<'a>,
    slices: Slices<'a>,
}

struct Pods<'a>(&'a Cluster);
struct Services<'a>(&'a Cluster);
struct Slices<'a>(&'a Cluster);

impl Serialize for Pods<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.pods.all())
    }
}

impl Serialize for Services<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.services.all())
    }
}

impl Serialize for Slices<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.services.all_slices())
    }
}

impl Cluster {
    /// Returns the labels, policies and rules as text, which is to be kept at once when it changes.
    pub fn rules_text(&self) -> serde_json::Result<Vec<u8>> {
        let labels = |namespace: &NamespaceFacts| namespace.labels.as_ref().clone();
        serde_json::to_vec(&Rules {
            format: FORMAT,
            namespaces: self
                .namespaces
                .iter()
                .map(|(name, namespace)| (Arc::clone(name), labels(namespace)))
                .collect(),
            policies: self
                .policies
                .texts()
                .map(|(kind, name, text)| SavedPolicy {
                    kind,
                    name: name.clone(),
                    text: text.map(str::to_owned),
                })
                .collect(),
            destinations: self.rules.values().cloned().collect(),
        })
    }

    /// Returns the nodes, pods and services as text, which is to be kept from time to time.
    pub fn members_text(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&MembersNow {
            format: FORMAT,
            zones: &self.zones,
            pods: Pods(self),
            services: Services(self),
            slices: Slices(self),
        })
    }

    /// Takes over both parts of what an earlier run remembered, or neither.
    ///
    /// # Errors
    ///
    /// When either part is damaged or of another version.
    pub fn restore(&mut self, rules: &[u8], members: &[u8]) -> Result<(), RestoreError> {
        let rules: Rules = serde_json::from_slice(rules)?;
        let members: Members = serde_json::from_slice(members)?;
        for format in [rules.format, members.format] {
            if format != FORMAT {
                return Err(RestoreError::Format(format));
            }
        }
        for (name, labels) in rules.namespaces {
            let facts = NamespaceFacts { labels: self.names.labels(labels), gone: false };
            self.namespaces.insert(name, facts);
        }
        for SavedPolicy { kind, name, text } in rules.policies {
            match text {
                Some(text) => self.policies.take(kind, name, text),
                None => self.policies.withhold(kind, name),
            }
        }
        self.rules.extend(rules.destinations.into_iter().map(|rule| (rule.name.clone(), rule)));
        self.rules_changed = true;
        self.zones = members.zones;
        for mut pod in members.pods {
            pod.share(&mut self.names);
            self.pods.keep(pod);
        }
        members.services.into_iter().for_each(|service| self.services.keep(service));
        for mut slice in members.slices {
            slice.share(&mut self.names);
            self.services.keep_slice(slice);
        }
        Ok(())
    }
}
