//! The conditions that L4 can check: texts, addresses and ports, each with its exclusions.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use sluice_spiffe::SpiffeId;

/// Prefix length of `::ffff:0:0/96`, under which IPv6 sockets show IPv4 addresses.
const V4_MAPPED_PREFIX: u8 = 96;

/// A string pattern as Istio's policies write it: `x`, `x*`, `*x` or `*`. There is no other wildcard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Present,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceAccount {
    pub(crate) namespace: Box<str>,
    pub(crate) name: Box<str>,
}

/// Terms for the value of one attribute: it is in `any`, unless that is empty, and not in `none`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms<T> {
    pub(crate) any: Box<[T]>,
    pub(crate) none: Box<[T]>,
}

/// Terms for all attributes; a match holds when all of them do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) principals: Terms<Pattern>,
    pub(crate) namespaces: Terms<Pattern>,
    pub(crate) trust_domains: Terms<Pattern>,
    pub(crate) service_accounts: Terms<ServiceAccount>,
    pub(crate) sources: Terms<IpNet>,
    pub(crate) destinations: Terms<IpNet>,
    pub(crate) ports: Terms<u16>,
}

/// A connection as the terms see it: canonical addresses, and the identity split into its parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) identity: Option<Identity<'a>>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
}

/// Parts of an identity. `workload` is its namespace and service account, and `None` if the path is not
/// `/ns/<namespace>/sa/<service account>`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    principal: &'a str,
    trust_domain: &'a str,
    workload: Option<(&'a str, &'a str)>,
}

// === impl Pattern ===

impl Pattern {
    /// Returns whether the pattern matches. Nothing matches an absent text, not even `*`.
    pub(crate) fn matches(&self, text: Option<&str>) -> bool {
        let Some(text) = text else { return false };
        match self {
            Self::Exact(exact) => text == exact.as_ref(),
            Self::Prefix(prefix) => text.starts_with(prefix.as_ref()),
            Self::Suffix(suffix) => text.ends_with(suffix.as_ref()),
            // No part of an identity is ever empty.
            Self::Present => true,
        }
    }
}

// === impl Terms ===

impl<T> Default for Terms<T> {
    fn default() -> Self {
        Self { any: Box::default(), none: Box::default() }
    }
}

impl<T> Terms<T> {
    fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }

    fn hold(&self, mut matches: impl FnMut(&T) -> bool) -> bool {
        (self.any.is_empty() || self.any.iter().any(&mut matches))
            && !self.none.iter().any(&mut matches)
    }
}

// === impl Match ===

impl Match {
    pub(crate) fn holds(&self, subject: &Subject<'_>) -> bool {
        let identity = subject.identity;
        let namespace =
            identity.and_then(|identity| identity.workload).map(|(namespace, _)| namespace);
        self.ports.hold(|port| *port == subject.port)
            && self.sources.hold(|block| block.contains(&subject.source))
            && self.destinations.hold(|block| block.contains(&subject.destination))
            && self
                .principals
                .hold(|pattern| pattern.matches(identity.map(|known| known.principal)))
            && self.namespaces.hold(|pattern| pattern.matches(namespace))
            && self.service_accounts.hold(|account| {
                identity.and_then(|identity| identity.workload)
                    == Some((account.namespace.as_ref(), account.name.as_ref()))
            })
            && self
                .trust_domains
                .hold(|pattern| pattern.matches(identity.map(|known| known.trust_domain)))
    }

    /// Returns whether it sets no condition.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { principals, namespaces, trust_domains, service_accounts, .. } = self;
        let Self { sources, destinations, ports, .. } = self;
        let identities = [principals, namespaces, trust_domains].into_iter().all(Terms::is_empty);
        let addresses = [sources, destinations].into_iter().all(Terms::is_empty);
        identities && addresses && service_accounts.is_empty() && ports.is_empty()
    }

    /// Returns whether only a connection with an identity can match.
    pub(crate) fn requires_identity(&self) -> bool {
        let Self { principals, namespaces, trust_domains, service_accounts, .. } = self;
        [principals, namespaces, trust_domains].into_iter().any(|terms| !terms.any.is_empty())
            || !service_accounts.any.is_empty()
    }

    /// Returns whether identities are excluded and none is required, so that plaintext matches as well.
    pub(crate) fn only_excludes_identities(&self) -> bool {
        let Self { principals, namespaces, trust_domains, service_accounts, .. } = self;
        let excludes =
            [principals, namespaces, trust_domains].into_iter().any(|terms| !terms.none.is_empty())
                || !service_accounts.none.is_empty();
        excludes && !self.requires_identity()
    }
}

// === impl Identity ===

impl<'a> Identity<'a> {
    pub(crate) fn of(id: &'a SpiffeId) -> Self {
        Self {
            principal: id.principal(),
            trust_domain: id.trust_domain(),
            workload: workload(id.path()),
        }
    }
}

/// Borrowed counterpart of [`sluice_spiffe::WorkloadName::of`], which allocates.
fn workload(path: &str) -> Option<(&str, &str)> {
    let (namespace, account) = path.strip_prefix("/ns/")?.split_once("/sa/")?;
    (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
}

/// Converts a block to the form in which connections are compared: no host bits, and IPv4 as IPv4 even where it was
/// written as `::ffff:192.0.2.0/120`.
pub(crate) fn canonical_block(block: IpNet) -> IpNet {
    let mapped = match block {
        IpNet::V4(_) => None,
        IpNet::V6(v6) => v6.addr().to_ipv4_mapped().and_then(|address| {
            let prefix = v6.prefix_len().checked_sub(V4_MAPPED_PREFIX)?;
            Ipv4Net::new(address, prefix).ok().map(IpNet::V4)
        }),
    };
    mapped.unwrap_or(block).trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_lose_host_bits_and_the_v4_mapping() {
        for (written, canonical) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::ffff:10.1.2.3/128", "10.1.2.3/32"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("fd00::1/64", "fd00::/64"),
        ] {
            let block: IpNet = written.parse().unwrap();
            assert_eq!(canonical_block(block), canonical.parse::<IpNet>().unwrap(), "{written}");
        }
    }

    #[test]
    fn an_identity_is_split_as_its_owned_counterpart_does() {
        for text in [
            "spiffe://a",
            "spiffe://a/ns/b/sa/c",
            "spiffe://a/ns/b/sa/c/d",
            "spiffe://a/ns/b/sa",
            "spiffe://a/ns/b/x/sa/c",
            "spiffe://a/ns/sa/sa/sa",
            "spiffe://a/ns/sa/sa/sa/sa",
            "spiffe://a/x/ns/b/sa/c",
        ] {
            let id: SpiffeId = text.parse().unwrap();
            let owned = sluice_spiffe::WorkloadName::of(&id);
            let owned = owned.as_ref().map(|name| (&*name.namespace, &*name.service_account));
            assert_eq!(workload(id.path()), owned, "{text}");
        }
    }
}
