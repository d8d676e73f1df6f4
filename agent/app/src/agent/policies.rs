//! The policies that the node knows, as the operator sees them.

use sluice_mesh::Snapshot;
use sluice_policy::Severity;

use super::source::{Report, Standing};
use crate::view::model::{Policy, PolicyState};

/// Returns every known policy, in force or refused.
pub(super) fn of(snapshot: &Snapshot, source: &Report) -> Vec<Policy> {
    if let Some(standings) = &source.standings {
        return standings.iter().map(|standing| told(standing, source)).collect();
    }
    // With files, a policy that is not in force has no name; it is among the source's errors.
    let objects = snapshot.policies().objects().iter();
    let standings = objects.map(|(id, _)| Standing {
        kind: id.kind.to_string(),
        namespace: id.namespace.to_string(),
        name: id.name.to_string(),
        version: None,
        refused: None,
    });
    standings.map(|standing| told(&standing, source)).collect()
}

fn told(standing: &Standing, source: &Report) -> Policy {
    let Standing { kind, namespace, name, version, refused } = standing.clone();
    let remarks = source.policies.iter().filter(|finding| {
        let id = &finding.object;
        *id.namespace == *namespace && *id.name == *name && id.kind.to_string() == kind
    });
    let (mut findings, mut is_narrowed) = (Vec::new(), false);
    for finding in remarks {
        is_narrowed |= finding.severity == Severity::Warning;
        findings.push(finding.to_string());
    }
    let state = match &refused {
        Some(_) => PolicyState::Refused,
        None if is_narrowed => PolicyState::Narrowed,
        None => PolicyState::Accepted,
    };
    findings.extend(refused);
    Policy { kind, namespace, name, version, state, findings }
}
