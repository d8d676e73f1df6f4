//! Judges each policy, once for the whole cluster.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use sluice_policy::{
    Compiled, Finding, ObjectKind, PolicyObject, PolicySet, ReadError, Severity, foreign_principals,
};
use sluice_spiffe::TrustDomain;

/// The type of our condition.
pub(crate) const CONDITION: &str = "sluice.dev/Accepted";
/// The annotation that says that a policy is to be checked but not enforced.
const DRY_RUN: &str = "istio.io/dry-run";
/// The longest message; a longer one ends with how much is left out. The API allows 32,768 characters.
const MAX_MESSAGE: usize = 4_096;

/// The key of a policy: kind, namespace, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: ObjectKind,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

/// A policy and what its status says now.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) uid: String,
    pub(crate) version: String,
    pub(crate) generation: i64,
    pub(crate) conditions: Vec<Value>,
    text: String,
    read: Result<Vec<PolicyObject>, ReadError>,
}

/// What a policy's status should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    pub(crate) is_accepted: bool,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

// === impl Policy ===

impl Policy {
    /// Reads an object as the API server sends it. `before` is what was known of the policy.
    pub(crate) fn read(key: &Key, object: &Value, before: Option<Self>) -> Self {
        let at = |path: &str| object.pointer(path);
        let text_at = |path: &str| at(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let text = written(key, object);
        let read = match before {
            Some(before) if before.text == text => before.read,
            _ => sluice_policy::read("kubernetes", &text),
        };
        Self {
            uid: text_at("/metadata/uid"),
            version: text_at("/metadata/resourceVersion"),
            generation: at("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
            conditions: at("/status/conditions")
                .and_then(Value::as_array)
                .cloned()
                .unwrap_or_default(),
            text,
            read,
        }
    }

    /// Returns the conditions with ours among them, or `None` if nothing changes.
    pub(crate) fn conditions_with(
        &self,
        judgement: &Judgement,
        now: Timestamp,
    ) -> Option<Vec<Value>> {
        let Judgement { is_accepted, reason, message } = judgement;
        let is_ours = |condition: &&Value| condition.get("type") == Some(&CONDITION.into());
        let ours = self.conditions.iter().find(is_ours);
        let status = if *is_accepted { "True" } else { "False" };
        let had = |field: &str| ours.and_then(|ours| ours.get(field));
        let had_text = |field: &str| had(field).and_then(Value::as_str);
        let is_right = had_text("status") == Some(status)
            && had_text("reason") == Some(reason)
            && had_text("message") == Some(message)
            && had("observedGeneration").and_then(generation) == Some(self.generation);
        if is_right {
            return None;
        }
        let since = had_text("lastTransitionTime").filter(|_| had_text("status") == Some(status));
        let since = since.map_or_else(|| seconds(now), str::to_owned);
        let condition = json!({
            "type": CONDITION,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": since,
            "observedGeneration": self.generation,
        });
        let mut conditions = self.conditions.clone();
        match conditions.iter_mut().find(|condition| is_ours(&&**condition)) {
            Some(ours) => *ours = condition,
            None => conditions.push(condition),
        }
        Some(conditions)
    }
}

/// Reads a generation. Istio's own conditions write it as a text, as protobuf's JSON does with 64-bit numbers.
fn generation(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.parse().ok())
}

/// Formats a time as `metav1.Time` is written.
fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Judges the policies. They are judged together, because some have no effect because of others.
pub(crate) fn judge(
    policies: &BTreeMap<Key, Policy>,
    root_namespace: &str,
    trust_domain: &TrustDomain,
) -> BTreeMap<Key, Judgement> {
    let readable = policies.values().filter_map(|policy| policy.read.as_ref().ok());
    let objects: Vec<PolicyObject> = readable.flatten().cloned().collect();
    let Compiled { mut findings, .. } = PolicySet::compile(&objects, &[], root_namespace);
    findings.extend(foreign_principals(&objects, trust_domain));
    let mut by_object: BTreeMap<Key, Vec<Finding>> = BTreeMap::new();
    for finding in findings {
        let sluice_policy::ObjectId { kind, namespace, name } = finding.object.clone();
        by_object.entry(Key { kind, namespace, name }).or_default().push(finding);
    }
    let judged = policies.iter().map(|(key, policy)| {
        let judgement = match &policy.read {
            Ok(_) => accepted(by_object.get(key).map_or(&[], Vec::as_slice)),
            Err(error) => refused(error),
        };
        (key.clone(), judgement)
    });
    judged.collect()
}

fn accepted(findings: &[Finding]) -> Judgement {
    let is_warned = findings.iter().any(|finding| finding.severity == Severity::Warning);
    let reason = if is_warned { "AcceptedWithWarnings" } else { "Accepted" };
    let said: Vec<String> = findings
        .iter()
        .map(|Finding { field, meaning, .. }| format!("{field}: {meaning}"))
        .collect();
    let message = if said.is_empty() { "enforced as written".to_owned() } else { bounded(&said) };
    Judgement { is_accepted: true, reason, message }
}

fn refused(error: &ReadError) -> Judgement {
    let fault = match error {
        ReadError::Content { field, problem, .. } => format!("{field}: {problem}"),
        ReadError::Syntax { message, .. } => format!("{message}: correct or remove it"),
        // Other errors name their place themselves.
        error => error.to_string(),
    };
    let means = "Nodes that know an earlier version keep it in force; others deny every connection that it could be about.";
    let message = format!("not enforceable: {}. {means}", bounded(&[fault]));
    Judgement { is_accepted: false, reason: "NotEnforceable", message }
}

fn bounded(said: &[String]) -> String {
    let mut message = String::new();
    for (position, part) in said.iter().enumerate() {
        if !message.is_empty() && message.len() + part.len() > MAX_MESSAGE {
            return format!("{message}; and {} more", said.len() - position);
        }
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.extend(part.chars().take(MAX_MESSAGE));
    }
    message
}

/// Returns the policy in the form that the reader takes, with only the metadata that is read.
fn written(key: &Key, object: &Value) -> String {
    let Key { kind, namespace, name } = key;
    let mut metadata = json!({ "name": &**name, "namespace": &**namespace });
    if let Some(created) = object.pointer("/metadata/creationTimestamp")
        && !created.is_null()
        && let Some(metadata) = metadata.as_object_mut()
    {
        metadata.insert("creationTimestamp".to_owned(), created.clone());
    }
    let annotations = object.pointer("/metadata/annotations");
    if let Some(dry_run) = annotations.and_then(|annotations| annotations.get(DRY_RUN))
        && let Some(metadata) = metadata.as_object_mut()
    {
        metadata.insert("annotations".to_owned(), json!({ DRY_RUN: dry_run }));
    }
    let mut text = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": kind.to_string(),
        "metadata": metadata,
    });
    if let (Some(spec), Some(text)) = (object.get("spec"), text.as_object_mut()) {
        text.insert("spec".to_owned(), spec.clone());
    }
    text.to_string()
}

#[cfg(test)]
mod tests;
