//! SPIFFE identifiers: `spiffe://<trust domain>/<path>`.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Longest identifier that may be accepted (SPIFFE-ID section 2.3).
const MAX_ID_BYTES: usize = 2048;
/// Longest name of a trust domain (SPIFFE-ID section 2.1).
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
const SCHEME: &str = "spiffe://";

/// Why a string is not a SPIFFE identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The scheme is not exactly `spiffe://`.
    #[error("{0:?} does not start with \"spiffe://\"")]
    Scheme(String),
    /// The identifier is longer than 2048 bytes.
    #[error("the identifier is {0} bytes long, more than the 2048 that SPIFFE allows")]
    TooLong(usize),
    /// The trust domain is empty, too long, or holds a character outside `a-z 0-9 . - _`.
    #[error("{0:?} is not a trust domain: lower-case letters, digits, '.', '-', '_', at most 255")]
    TrustDomain(String),
    /// A path segment is empty, `.` or `..`, or holds a character outside `A-Z a-z 0-9 . - _`.
    #[error("{0:?} is not a SPIFFE path: non-empty segments of letters, digits, '.', '-', '_'")]
    Path(String),
}

/// The name of an administrative domain with its own roots, such as `cluster.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE identity, such as `spiffe://cluster.local/ns/default/sa/web`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    text: Arc<str>,
    domain_end: usize,
}

// === impl TrustDomain ===

impl TrustDomain {
    /// Returns the name, without a scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn check(name: &str) -> Result<(), IdError> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if name.is_empty() || name.len() > MAX_TRUST_DOMAIN_BYTES || !name.bytes().all(allowed) {
            return Err(IdError::TrustDomain(name.to_owned()));
        }
        Ok(())
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(name: &str) -> Result<Self, IdError> {
        Self::check(name)?;
        Ok(Self(name.into()))
    }
}

impl TryFrom<String> for TrustDomain {
    type Error = IdError;

    fn try_from(name: String) -> Result<Self, IdError> {
        name.parse()
    }
}

impl From<TrustDomain> for String {
    fn from(domain: TrustDomain) -> Self {
        domain.0.as_ref().to_owned()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

// === impl SpiffeId ===

impl SpiffeId {
    /// Returns the whole identifier, including the scheme.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the identifier without `spiffe://`, the form in which Istio's policies write principals.
    pub fn principal(&self) -> &str {
        self.text.strip_prefix(SCHEME).unwrap_or(&self.text)
    }

    /// Returns the trust domain's name.
    pub fn trust_domain(&self) -> &str {
        self.text.get(SCHEME.len()..self.domain_end).unwrap_or("")
    }

    /// Returns whether the identity belongs to `domain`.
    pub fn is_in(&self, domain: &TrustDomain) -> bool {
        self.trust_domain() == domain.as_str()
    }

    /// Returns the path with its leading slash, or an empty string for the identity of the trust domain itself.
    pub fn path(&self) -> &str {
        self.text.get(self.domain_end..).unwrap_or("")
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if text.len() > MAX_ID_BYTES {
            return Err(IdError::TooLong(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| IdError::Scheme(text.to_owned()))?;
        let domain_length = rest.find('/').unwrap_or(rest.len());
        let (domain, path) = rest.split_at(domain_length);
        TrustDomain::check(domain)?;
        if let Some(segments) = path.strip_prefix('/')
            && !segments.split('/').all(is_segment)
        {
            return Err(IdError::Path(path.to_owned()));
        }
        Ok(Self { text: text.into(), domain_end: SCHEME.len() + domain_length })
    }
}

fn is_segment(segment: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !matches!(segment, "" | "." | "..") && segment.bytes().all(allowed)
}

impl TryFrom<String> for SpiffeId {
    type Error = IdError;

    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.text.as_ref().to_owned()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_identity_splits_into_domain_and_path() {
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/web".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!(id.path(), "/ns/default/sa/web");
        assert_eq!(id.principal(), "cluster.local/ns/default/sa/web");
    }

    #[test]
    fn a_trust_domain_alone_is_an_identity_without_path() {
        let id: SpiffeId = "spiffe://example.org".parse().unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("example.org", ""));
    }

    #[test]
    fn whatever_section_2_forbids_is_refused() {
        let long = format!("spiffe://a/{}", "b".repeat(MAX_ID_BYTES));
        for text in [
            "",
            "spiffe://",
            "SPIFFE://a/b",
            "https://a/b",
            "spiffe:///b",
            "spiffe://A/b",
            "spiffe://a:80/b",
            "spiffe://user@a/b",
            "spiffe://a/b?q",
            "spiffe://a/b#f",
            "spiffe://a/",
            "spiffe://a/b/",
            "spiffe://a//b",
            "spiffe://a/./b",
            "spiffe://a/../b",
            "spiffe://a/%41",
            "spiffe://a/b c",
            "spiffe://a/b\0",
            "spiffe://ä/b",
            &long,
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?} was accepted");
        }
    }
}
