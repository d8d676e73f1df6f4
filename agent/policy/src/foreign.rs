//! Principals that no pod of the mesh has, because they name Istio's default trust domain.

use std::collections::BTreeSet;

use sluice_spiffe::TrustDomain;

use crate::{Finding, PolicyObject, Severity, finding::Meaning, matching::Pattern, object::Spec};

/// Istio takes it for the mesh's own trust domain, whichever that is; here a principal is what a certificate says.
const DEFAULT: &str = "cluster.local";

/// Remarks on principals that begin with `cluster.local/` in a mesh of another trust domain. Others that are not the
/// mesh's may be of a federated one, which is not known here.
pub fn foreign_principals(objects: &[PolicyObject], trust_domain: &TrustDomain) -> Vec<Finding> {
    if trust_domain.as_str() == DEFAULT {
        return Vec::new();
    }
    let remark = |object: &PolicyObject, principal: &str| Finding {
        object: object.id.clone(),
        place: object.place.clone(),
        field: "spec.rules".to_owned(),
        severity: Severity::Warning,
        meaning: Meaning::ForeignPrincipal {
            principal: principal.to_owned(),
            trust_domain: trust_domain.clone(),
        },
    };
    let of_object = |object| {
        let principals = principals(object).into_iter();
        principals.map(move |principal| remark(object, principal))
    };
    objects.iter().flat_map(of_object).collect()
}

/// Those that name the whole of the default trust domain.
fn principals(object: &PolicyObject) -> BTreeSet<&str> {
    let Spec::Authorization(policy) = &object.spec else { return BTreeSet::new() };
    let clauses = policy.rules.iter().flat_map(|rule| &rule.clauses);
    let conditions = clauses.flat_map(|clause| &clause.alternatives);
    let patterns =
        conditions.flat_map(|terms| terms.principals.any.iter().chain(&terms.principals.none));
    let texts = patterns.filter_map(|pattern| match pattern {
        Pattern::Exact(text) | Pattern::Prefix(text) => Some(&**text),
        Pattern::Suffix(_) | Pattern::Present => None,
    });
    texts.filter(|text| text.split_once('/').is_some_and(|(domain, _)| domain == DEFAULT)).collect()
}
