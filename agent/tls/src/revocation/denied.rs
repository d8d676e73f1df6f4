//! Identities that an operator denies.

use std::collections::BTreeSet;

use sluice_spiffe::SpiffeId;

/// Identities that are refused as client and as server, whatever certificate they hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DenyList {
    exact: BTreeSet<String>,
    prefixes: BTreeSet<String>,
}

/// Why a text cannot be an entry of the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// The text is neither a SPIFFE identity nor a prefix of one.
    #[error("{text:?} is not a SPIFFE identity ({reason}); a prefix ends with one '*'")]
    Identity {
        /// The text.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The text would deny everybody.
    #[error(
        "{0:?} would deny whole trust domains of any name: write at least spiffe://<trust domain>/*"
    )]
    Everybody(String),
}

// === impl DenyList ===

impl DenyList {
    /// Denies `pattern`: a SPIFFE identity, or a prefix of identities that ends with `*`.
    pub fn add(&mut self, pattern: &str) -> Result<(), PatternError> {
        let identity = |text: &str| match text.parse::<SpiffeId>() {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(PatternError::Identity { text: pattern.to_owned(), reason: error.to_string() })
            }
        };
        let Some(prefix) = pattern.strip_suffix('*') else {
            identity(pattern)?;
            self.exact.insert(pattern.to_owned());
            return Ok(());
        };
        let path = prefix.strip_prefix("spiffe://").and_then(|rest| rest.split_once('/'));
        if path.is_none() {
            return Err(PatternError::Everybody(pattern.to_owned()));
        }
        // A prefix that does not become an identity with one more letter can match none.
        identity(&format!("{prefix}x"))?;
        self.prefixes.insert(prefix.to_owned());
        Ok(())
    }

    /// Returns whether `id` is denied.
    pub fn denies(&self, id: &SpiffeId) -> bool {
        let id = id.as_str();
        self.exact.contains(id) || self.prefixes.iter().any(|prefix| id.starts_with(prefix))
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.exact.len() + self.prefixes.len()
    }

    /// Returns whether nobody is denied.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denies(patterns: &[&str], id: &str) -> bool {
        let mut list = DenyList::default();
        for pattern in patterns {
            list.add(pattern).unwrap();
        }
        list.denies(&id.parse().unwrap())
    }

    #[test]
    fn exact_entries_match_themselves_only() {
        let list = ["spiffe://a/ns/shop/sa/web"];
        assert!(denies(&list, "spiffe://a/ns/shop/sa/web"));
        assert!(!denies(&list, "spiffe://a/ns/shop/sa/web2"));
        assert!(!denies(&list, "spiffe://b/ns/shop/sa/web"));
    }

    #[test]
    fn prefixes_match_what_they_begin() {
        let list = ["spiffe://a/ns/shop/*", "spiffe://b/*"];
        assert!(denies(&list, "spiffe://a/ns/shop/sa/web"));
        assert!(!denies(&list, "spiffe://a/ns/shop2/sa/web"));
        assert!(denies(&list, "spiffe://b/anybody"));
    }

    #[test]
    fn what_denies_nobody_or_everybody_is_refused() {
        let mut list = DenyList::default();
        for text in ["", "*", "web", "spiffe://*", "spiffe://a*", "spiffe://a/b*c", "spiffe://A/b"]
        {
            assert!(list.add(text).is_err(), "{text:?}");
        }
        assert!(list.is_empty());
    }
}
