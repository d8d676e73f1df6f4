//! Which roots are to be published: those of the authority, and for a while those that were there before. By the old
//! ones agents hold certificates, and replicas do not learn of new material in the same moment. And which of them agents
//! know by now.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use sluice_spiffe::TrustDomain;
use sluice_tls::{CertificateDer, TrustBundle, UnixTime, ca::LocalCa, certificates_of_pem};

const END: &str = "-----END CERTIFICATE-----";

/// Remembers when roots were first published, and when they were last ours.
#[derive(Debug)]
pub struct PublishedRoots {
    domain: TrustDomain,
    ttl: Duration,
    delay: Duration,
    left: HashMap<CertificateDer<'static>, UnixTime>,
    /// Since when each root has been published; `None` if it was there from the beginning, or was the first of all.
    seen: HashMap<CertificateDer<'static>, Option<Instant>>,
    has_looked: bool,
}

/// One certificate among others in a PEM text.
#[derive(Clone, Debug)]
struct Root {
    der: CertificateDer<'static>,
    pem: String,
}

// === impl PublishedRoots ===

impl PublishedRoots {
    /// Publishes a root of `domain` for `ttl`, the life of what it has issued, after it was last ours. Agents know a new
    /// one `delay` after it was published.
    pub fn new(domain: TrustDomain, ttl: Duration, delay: Duration) -> Self {
        let (left, seen) = (HashMap::new(), HashMap::new());
        Self { domain, ttl, delay, left, seen, has_looked: false }
    }

    /// What to publish now instead of `published`, if that lacks a root of `ours` or holds one for too long. A root that
    /// somebody has taken out of it stays out, unless it is ours.
    pub fn wanted(
        &mut self,
        ours: &str,
        published: Option<&str>,
        (now, instant): (UnixTime, Instant),
    ) -> Option<String> {
        let ours = roots(ours);
        let published = published.unwrap_or_default();
        let present = roots(published);
        self.note(&ours, &present, instant);
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

    /// Returns whether agents believe what `authority` issues by roots that they have had the time to learn of. The first
    /// roots of all need no time. `None` until it is known what is published.
    pub fn are_known(&self, authority: &LocalCa, now: Instant) -> Option<bool> {
        if !self.has_looked {
            return None;
        }
        let is_old = |since: &Option<Instant>| {
            since.is_none_or(|since| now.saturating_duration_since(since) >= self.delay)
        };
        let known = self.seen.iter().filter(|(_, since)| is_old(since));
        let known: Vec<_> = known.map(|(der, _)| der.clone()).collect();
        Some(authority.is_believed_under(&known))
    }

    fn note(&mut self, ours: &[Root], present: &[Root], now: Instant) {
        // One of ours that somebody takes out is back in a moment, and agents know it as before.
        let all = || ours.iter().chain(present);
        self.seen.retain(|der, _| all().any(|root| root.der == *der));
        let is_first = !std::mem::replace(&mut self.has_looked, true);
        // Where nothing is published yet, agents wait for what will be.
        let news = if is_first && present.is_empty() { ours } else { present };
        let since = (!is_first).then_some(now);
        for root in news {
            self.seen.entry(root.der.clone()).or_insert(since);
        }
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
    use std::sync::{Arc, LazyLock};

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose};
    use sluice_tls::{
        SystemClock,
        ca::{NewRoot, PemTexts},
    };
    use time::OffsetDateTime;

    use super::*;

    const START: u64 = 1_800_000_000;
    const TTL: u64 = 3_600;
    const DELAY: Duration = Duration::from_mins(2);

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
        let ttl = Duration::from_secs(TTL);
        PublishedRoots::new("cluster.local".parse().unwrap(), ttl, DELAY)
    }

    /// Both clocks, this many seconds after the start.
    fn after(seconds: u64) -> (UnixTime, Instant) {
        static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
        let passed = Duration::from_secs(seconds);
        (UnixTime::since_unix_epoch(Duration::from_secs(START) + passed), *BEGUN + passed)
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

    /// A new authority, with its root.
    fn authority() -> (LocalCa, String) {
        let (domain, clock) = ("cluster.local".parse().unwrap(), Arc::new(SystemClock));
        let NewRoot { certificate, key } = NewRoot::generate(&domain, clock.as_ref()).unwrap();
        let origin = std::path::Path::new("test");
        let texts =
            PemTexts { origin, certificate: certificate.as_bytes(), key: &key, roots: None };
        (LocalCa::from_texts(&texts, &domain, clock).unwrap(), certificate)
    }

    #[test]
    fn a_root_is_known_when_it_has_been_published_for_the_delay() {
        let ((old, old_root), (new, new_root)) = (authority(), authority());
        let both = format!("{new_root}{old_root}");
        let mut keeper = keeper();
        let known = |keeper: &PublishedRoots, ca, at| keeper.are_known(ca, after(at).1);
        assert_eq!(known(&keeper, &old, 0), None, "nobody has looked");
        // The first roots of all need no time, nor do those that an earlier run has published.
        keeper.wanted(&old_root, None, after(0));
        assert_eq!(known(&keeper, &old, 0), Some(true));
        keeper.wanted(&old_root, Some(&old_root), after(1));
        assert_eq!(known(&keeper, &old, 1), Some(true));
        // Material that is not published yet, for however long, is not known.
        keeper.wanted(&both, Some(&old_root), after(10));
        assert_eq!(known(&keeper, &new, 1_000), Some(false));
        keeper.wanted(&both, Some(&both), after(1_000));
        assert_eq!(known(&keeper, &new, 1_119), Some(false));
        assert_eq!(known(&keeper, &new, 1_120), Some(true));
        assert_eq!(known(&keeper, &old, 1_120), Some(true));
        // The ConfigMap was deleted: what is ours is known as before, the other is not.
        keeper.wanted(&new_root, None, after(2_000));
        keeper.wanted(&new_root, Some(&new_root), after(2_001));
        assert_eq!(known(&keeper, &new, 2_001), Some(true));
        assert_eq!(known(&keeper, &old, 2_001), Some(false));
    }

    #[test]
    fn only_the_first_roots_of_all_need_no_time() {
        let ((old, old_root), (new, new_root)) = (authority(), authority());
        let mut keeper = keeper();
        keeper.wanted(&old_root, None, after(0));
        // Others have published two, before this has seen the first.
        keeper.wanted(&old_root, Some(&format!("{new_root}{old_root}")), after(1));
        assert_eq!(keeper.are_known(&old, after(1).1), Some(true));
        assert_eq!(keeper.are_known(&new, after(1).1), Some(false));
    }

    #[test]
    fn a_replica_that_starts_with_a_root_that_was_never_published_knows_that() {
        let ((_, old_root), (new, new_root)) = (authority(), authority());
        let mut keeper = keeper();
        keeper.wanted(&new_root, Some(&old_root), after(0));
        assert_eq!(keeper.are_known(&new, after(0).1), Some(false));
        keeper.wanted(&new_root, Some(&format!("{new_root}{old_root}")), after(1));
        assert_eq!(keeper.are_known(&new, after(120).1), Some(false));
        assert_eq!(keeper.are_known(&new, after(121).1), Some(true));
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
