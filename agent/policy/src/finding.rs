//! Remarks on accepted objects: what they do not do, or do differently than their authors may expect.

use std::fmt;

use sluice_spiffe::TrustDomain;

use crate::{ObjectId, Place};

/// How much a finding should worry its reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Enforced as written; worth knowing.
    Notice,
    /// Part of the object is enforced more strictly than written, or has no effect.
    Warning,
}

/// A remark on one field of one accepted object, for status and logs. A finding never means that access was widened:
/// what could widen it is refused instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Finding {
    /// The object in question.
    pub object: ObjectId,
    /// Where the field was read.
    pub place: Place,
    /// Path of the field, such as `spec.rules[0].to[0].operation.methods`.
    pub field: String,
    /// How much it matters.
    pub severity: Severity,
    /// What it means, in one sentence.
    pub meaning: Meaning,
}

/// The meanings that a finding can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Meaning {
    /// An ALLOW rule with a condition on HTTP.
    #[error("L4 cannot check this HTTP condition, so this ALLOW rule never matches")]
    AllowRuleNeverMatches,
    /// A DENY rule with conditions on HTTP and others.
    #[error(
        "L4 cannot check this HTTP condition, so this DENY rule is enforced without it and denies more"
    )]
    DenyRuleEnforcedWithout,
    /// A DENY rule that only has conditions on HTTP.
    #[error(
        "L4 cannot check this HTTP condition and the DENY rule has no other, so it denies every connection to the \
         selected workloads: add ports or sources to narrow it"
    )]
    DenyRuleDeniesEverything,
    /// A DENY policy without rules.
    #[error("a DENY policy without rules denies nothing: add the rule {{}} to deny everything")]
    DenyWithoutRules,
    /// An ALLOW rule that only excludes identities.
    #[error(
        "plaintext connections have no identity, so they match this exclusion too: require mutual TLS (STRICT) or a \
         principal"
    )]
    ExclusionMatchesPlaintext,
    /// A principal of Istio's default trust domain in a mesh of another.
    #[error(
        "{principal:?} is of the trust domain cluster.local, which Istio takes for the mesh's own and this mesh does \
         not, so no pod of it matches: write {trust_domain} there"
    )]
    ForeignPrincipal {
        /// As it is written, without a `*` at its end.
        principal: String,
        /// The mesh's own trust domain.
        trust_domain: TrustDomain,
    },
    /// A list that is there but empty.
    #[error("an empty list sets no condition, as in Istio: remove it, or list a value")]
    EmptyList,
    /// The object carries `istio.io/dry-run`.
    #[error("annotated istio.io/dry-run, so it is read and checked but not enforced")]
    DryRun,
    /// A `PeerAuthentication` of the root namespace with a selector.
    #[error(
        "a selector in the root namespace has no effect, as in Istio: move the object to the workloads' namespace"
    )]
    SelectorInRootNamespace,
    /// Several `PeerAuthentication` apply to a workload at one level.
    #[error(
        "not in force where {0} applies too: of several at one level the oldest wins, as in Istio"
    )]
    OlderWins(ObjectId),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, place, field, severity: _, meaning } = self;
        write!(f, "{place}: {object}: {field}: {meaning}")
    }
}
