//! Why a text of policies was refused: where, which field, what to do.

use std::{fmt, sync::Arc};

use crate::ObjectId;

/// A line of a text of policies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Name of the text, such as a file's path.
    pub origin: Arc<str>,
    /// Line, from 1.
    pub line: u64,
}

/// Why a text of policies was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Not YAML, or not the shape of a policy: an unknown field, a list where a text belongs.
    #[error("{place}:{column}: {message}: correct or remove it")]
    Syntax {
        /// Where the fault is.
        place: Place,
        /// Column, from 1.
        column: u64,
        /// What the YAML reader says; it names the field.
        message: String,
    },
    /// The shape is right, a value is not.
    #[error("{place}: {field}: {problem}")]
    Content {
        /// Where the fault is.
        place: Place,
        /// Path of the field, such as `spec.rules[0].from[1].source.ipBlocks`.
        field: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

/// What can be wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// An object of another kind.
    #[error(
        "{kind} ({version}) is not a policy: only PeerAuthentication and AuthorizationPolicy of \
         security.istio.io/v1 or v1beta1 may stand here, move the object elsewhere"
    )]
    Kind {
        /// The kind it has.
        kind: String,
        /// The API version it has.
        version: String,
    },
    /// A field that must be there is not.
    #[error("missing: write it")]
    Missing,
    /// The field belongs to another kind of object.
    #[error("{0} has no such field: remove it")]
    ForeignField(crate::ObjectKind),
    /// An item of a typed list that names another kind.
    #[error("this is a list of {0}: move the item out of it")]
    NotOfList(crate::ObjectKind),
    /// A list with a spec of its own.
    #[error("a list has items, not a spec: move it into an item")]
    SpecOfList,
    /// A namespace or name that Kubernetes would not accept.
    #[error(
        "{0:?} is not a Kubernetes name: lower-case letters, digits, '-' (and '.' in names of objects)"
    )]
    NotAName(String),
    /// Two objects of one kind, namespace and name.
    #[error("{object} is already defined at {first}: remove one of them")]
    Duplicate {
        /// The object.
        object: ObjectId,
        /// Where it was defined first.
        first: Place,
    },
    /// A time that is not in the form that the API server writes.
    #[error("{0:?} is not a time such as 2025-01-31T12:00:00Z: write it so, or remove it")]
    NotATime(String),
    /// An action that L4 does not have.
    #[error(
        "{0:?} is not enforced here: ALLOW and DENY are, remove the object or change its action"
    )]
    Action(String),
    /// A mode of mutual TLS that does not exist.
    #[error("{0:?} is not a mode: STRICT, PERMISSIVE, DISABLE and UNSET are")]
    Mode(String),
    /// The object binds to a gateway, waypoint or service.
    #[error(
        "policies that bind to gateways, waypoints or services are not enforced here: use spec.selector"
    )]
    TargetRefs,
    /// Ports without a workload to which they belong.
    #[error("portLevelMtls needs a selector with labels, as in Istio: add one, or remove it")]
    PortsWithoutSelector,
    /// A selector with an empty key or a wildcard.
    #[error("{0:?} cannot be selected by: labels are matched exactly, without wildcard")]
    Label(String),
    /// A rule, source or operation that is present but sets no condition.
    #[error(
        "empty: write a condition, or remove the entry (a rule {{}} without any matches everything)"
    )]
    Empty,
    /// A value that is an empty string.
    #[error("an empty value: write one, or remove it")]
    EmptyValue,
    /// A `*` in the middle of a text, or more than one.
    #[error("{0:?}: '*' may only be the first or the last character")]
    Wildcard(String),
    /// Wildcards where Istio has none.
    #[error("{0:?}: wildcards are not possible here")]
    NoWildcard(String),
    /// A principal with the scheme of its URI.
    #[error(
        "{0:?}: principals are written without \"spiffe://\", as in Istio; it would never match"
    )]
    SpiffeScheme(String),
    /// Not `name` or `namespace/name`.
    #[error("{0:?} is not a service account: write name, or namespace/name")]
    ServiceAccount(String),
    /// Service accounts beside namespaces or principals.
    #[error(
        "serviceAccounts cannot stand beside namespaces or principals, as in Istio: use separate entries"
    )]
    ServiceAccountsBeside,
    /// A trust domain with a path.
    #[error("{0:?} is not a trust domain: it holds a '/'")]
    TrustDomain(String),
    /// Not an address or CIDR block.
    #[error(
        "{0:?} is not an address or block: write 192.0.2.1, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/32"
    )]
    Address(String),
    /// Not a port.
    #[error("{0:?} is not a port: 1 to 65535")]
    Port(String),
    /// The same port twice.
    #[error("port {0} is listed twice: remove one")]
    PortTwice(u16),
    /// A key of `when` that Istio does not have.
    #[error("{0:?} is not a condition that Istio knows: correct it, or remove the entry")]
    WhenKey(String),
    /// A value of `istio.io/dry-run` that is not a boolean.
    #[error("{0:?} is neither true nor false")]
    NotABoolean(String),
}

// === impl Place ===

impl Place {
    pub(crate) fn at(origin: &Arc<str>, location: serde_saphyr::Location) -> Self {
        Self { origin: Arc::clone(origin), line: location.line() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.origin, self.line)
    }
}

// === impl ReadError ===

impl ReadError {
    pub(crate) fn syntax(origin: &Arc<str>, error: &serde_saphyr::Error) -> Self {
        let (line, column) =
            error.location().map_or((1, 1), |location| (location.line(), location.column()));
        let message = error.without_snippet().to_string();
        // The YAML reader's message ends with the line and column, which the error states already.
        let suffix = format!(" at line {line}, column {column}");
        let message = message.strip_suffix(&suffix).unwrap_or(&message).to_owned();
        Self::Syntax { place: Place { origin: Arc::clone(origin), line }, column, message }
    }

    /// Returns where the fault is.
    pub fn place(&self) -> &Place {
        match self {
            Self::Syntax { place, .. } | Self::Content { place, .. } => place,
        }
    }
}
