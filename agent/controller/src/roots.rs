//! Which roots are to be published: those of the authority, and for a while those that were there before. By the old
//! ones agents hold certificates, and replicas do not learn of new material in the same moment.

use std::{collections::HashMap, time::Duration};

use sluice_spiffe::TrustDomain;
use sluice_tls::{CertificateDer, TrustBundle, UnixTime, certificates_of_pem};

const END: &str = "-----END CERTIFICATE-----";

/// Remembers when roots left the authority's material.
#[derive(Debug)]
pub struct PublishedRoots {
    domain: TrustDomain,
    ttl: Duration,
    left: HashMap<CertificateDer<'static>, UnixTime>,
}

/// One certificate among others in a PEM text.
#[derive(Clone, Debug)]
struct Root {
    der: CertificateDer<'static>,
    pem: String,
}

// === impl PublishedRoots ===

impl PublishedRoots {
    /// Publishes a root of `domain` for `ttl`, the life of what it has issued, after it has left.
    pub fn new(domain: TrustDomain, ttl: Duration) -> Self {
        Self { domain, ttl, left: HashMap::new() }
    }

    /// What to publish now instead of `published`, if that lacks a root of `ours` or holds one for too long. A root that
    /// somebody has taken out of it stays out, unless it is ours.
    pub fn wanted(&mut self, ours: &str, published: Option<&str>, now: UnixTime) -> Option<String> {
        let ours = roots(ours);
        let published = published.unwrap_or_default();
        let present = roots(published);
        let is_ours = |root: &Root| ours.iter().any(|one| one.der == root.der);
        let others: Vec<_> = present.iter().filter(|root| !is_ours(root)).cloned().collect();
        self.left.retain(|der, _| others.iter().any(|root| root.der == *der));
        let kept: Vec<_> = others.into_iter().filter(|root| self.is_kept(root, now)).collect();
        let is_complete = ours.iter().all(|one| present.iter().any(|root| root.der == one.der));
        if is_complete && published.matches(END).count() == ours.len() + kept.len() {
            return None;
        }
        Some(ours.into_iter().chain(kept).map(|root| root.pem).collect())
    }

    fn is_kept(&mut self, root: &Root, now: UnixTime) -> bool {
        let left = *self.left.entry(root.der.clone()).or_insert(now);
        let bundle = TrustBundle::new(self.domain.clone(), [root.der.clone()]);
        let expiry = bundle.ok().and_then(|bundle| bundle.first_expiry());
        now.as_secs() < left.as_secs().saturating_add(self.ttl.as_secs())
            && expiry.is_some_and(|expiry| now < expiry)
    }
}

/// The certificates of a text, each once, without what cannot be read.
fn roots(text: &str) -> Vec<Root> {
    let mut roots: Vec<Root> = Vec::new();
    for block in text.split_inclusive(END) {
        let start = block.find("-----BEGIN CERTIFICATE-----").unwrap_or_default();
        let pem = format!("{}\n", block.get(start..).unwrap_or_default());
        let certificates = certificates_of_pem(pem.as_bytes()).unwrap_or_default();
        if let Some(der) = certificates.into_iter().next()
            && roots.iter().all(|root| root.der != der)
        {
            roots.push(Root { der, pem });
        }
    }
    roots
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
    use time::OffsetDateTime;

    use super::*;

    const START: u64 = 1_800_000_000;
    const TTL: u64 = 3_600;

    /// A root that expires this many seconds after the start.
    fn root(lives: u64) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let end = i64::try_from(START + lives).unwrap();
        params.not_after = OffsetDateTime::from_unix_timestamp(end).unwrap();
        let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        pem.replace("\r\n", "\n")
    }

    fn keeper() -> PublishedRoots {
        PublishedRoots::new("cluster.local".parse().unwrap(), Duration::from_secs(TTL))
    }

    fn after(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(START + seconds))
    }

    #[test]
    fn a_root_stays_for_what_it_has_issued_after_it_has_left() {
        let (old, new) = (root(10 * TTL), root(10 * TTL));
        let mut keeper = keeper();
        assert_eq!(keeper.wanted(&old, None, after(0)), Some(old.clone()));
        assert_eq!(keeper.wanted(&old, Some(&old), after(1)), None);
        let both = format!("{new}{old}");
        assert_eq!(keeper.wanted(&new, Some(&old), after(2 * TTL)), Some(both.clone()));
        assert_eq!(keeper.wanted(&new, Some(&both), after(3 * TTL - 1)), None);
        assert_eq!(keeper.wanted(&new, Some(&both), after(3 * TTL)), Some(new.clone()));
        // It was back in the material in between: the time begins anew.
        assert_eq!(keeper.wanted(&both, Some(&both), after(3 * TTL)), None);
        assert_eq!(keeper.wanted(&new, Some(&both), after(3 * TTL)), None);
    }

    #[test]
    fn replicas_with_different_material_agree() {
        let (old, new) = (root(10 * TTL), root(10 * TTL));
        let (mut first, mut second) = (keeper(), keeper());
        let published = first.wanted(&new, Some(&old), after(0)).unwrap();
        assert_eq!(second.wanted(&old, Some(&published), after(1)), None);
        assert_eq!(first.wanted(&new, Some(&published), after(2)), None);
        // One that starts later counts from then on.
        assert_eq!(keeper().wanted(&new, Some(&published), after(5 * TTL)), None);
    }

    #[test]
    fn what_is_expired_or_no_root_or_was_taken_out_goes_at_once() {
        let (ours, expired, other) = (root(10 * TTL), root(10), root(10 * TTL));
        let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for gone in [expired.as_str(), damaged] {
            let published = format!("{gone}{ours}{other}");
            let left = keeper().wanted(&ours, Some(&published), after(10));
            assert_eq!(left, Some(format!("{ours}{other}")));
        }
        let mut keeper = keeper();
        let published = keeper.wanted(&ours, Some(&other), after(0)).unwrap();
        assert_eq!(published, format!("{ours}{other}"));
        assert_eq!(keeper.wanted(&ours, Some(&ours), after(1)), None);
        assert_eq!(keeper.wanted(&ours, None, after(2)), Some(ours.clone()));
    }
}
