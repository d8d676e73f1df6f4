//! The policy objects after reading: every value parsed, nothing left to refuse.

use std::{collections::BTreeMap, fmt, sync::Arc};

use crate::{Finding, MtlsMode, Place, matching::Match};

/// The kinds of object that this crate understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// Who may connect.
    AuthorizationPolicy,
    /// Which transport a workload accepts.
    PeerAuthentication,
}

/// Identifies an object within a mesh.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: ObjectKind,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// One object that was read and understood.
#[derive(Clone, Debug)]
pub struct PolicyObject {
    pub(crate) id: ObjectId,
    pub(crate) place: Place,
    /// Creation time in the only form that the API server writes, `2025-01-31T12:00:00Z`, in which text order is time
    /// order.
    pub(crate) created: Option<Arc<str>>,
    pub(crate) spec: Spec,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Spec {
    Authorization(Arc<Authorization>),
    PeerAuthentication(Arc<PeerAuthentication>),
}

/// Labels that a workload must carry. Empty selects every workload.
pub(crate) type Labels = BTreeMap<String, String>;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PeerAuthentication {
    pub(crate) selector: Labels,
    /// `None` inherits from the next wider level.
    pub(crate) mode: Option<MtlsMode>,
    /// Modes by port of the workload; `None` takes the workload's own mode.
    pub(crate) ports: BTreeMap<u16, Option<MtlsMode>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    Deny,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Authorization {
    /// `namespace/name`, as refusals cite it.
    pub(crate) name: Arc<str>,
    pub(crate) selector: Labels,
    pub(crate) action: Action,
    pub(crate) dry_run: bool,
    pub(crate) rules: Box<[Rule]>,
}

/// Matches when every clause does; a rule without clauses matches everything.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) clauses: Box<[Clause]>,
}

/// Matches when any of its alternatives does.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Clause {
    pub(crate) alternatives: Box<[Match]>,
}

// === impl PolicyObject ===

impl PolicyObject {
    /// Returns its kind, namespace and name.
    pub fn id(&self) -> &ObjectId {
        &self.id
    }

    /// Returns where it was read.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Returns whether both would be enforced alike, wherever they were read.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        (&self.id, &self.created, &self.spec) == (&other.id, &other.created, &other.spec)
    }
}

// === impl ObjectKind ===

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
        })
    }
}

// === impl ObjectId ===

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}
