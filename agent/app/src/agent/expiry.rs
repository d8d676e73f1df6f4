//! Warns before anything expires: certificates, their authorities, roots, revocation lists.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sluice_proxy::Shared;
use sluice_tls::{CertStatus, CertStore, UnixTime};

/// How often expiry is checked; a jump of the clock is noticed within this time.
const LOOK: Duration = Duration::from_secs(10);
/// The longest notice: a warning begins with the last fifth of a life, but no earlier than this before its end.
const LONGEST_NOTICE: Duration = Duration::from_hours(24 * 30);

/// Logs what is about to expire, and what no longer is, for as long as the agent runs.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut said = BTreeSet::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        let now: BTreeSet<String> = warnings(&shared.certificates).into_iter().collect();
        for warning in now.difference(&said) {
            tracing::warn!(%warning, "expiry");
        }
        for over in said.difference(&now) {
            tracing::info!(was = %over, "no longer so");
        }
        said = now;
    }
}

/// Returns a warning for everything that has expired, is not valid yet, or is likely to expire before it is replaced:
/// what certificates hang on, which [`of_trust`] returns, and the certificates themselves.
pub(super) fn warnings(certificates: &CertStore) -> Vec<String> {
    let now = certificates.now();
    let mut warnings = of_trust(certificates);
    warnings.extend(certificates.status().iter().filter_map(|status| of_certificate(status, now)));
    warnings.sort();
    warnings
}

/// Returns those of the warnings that are about what certificates hang on.
pub(super) fn of_trust(certificates: &CertStore) -> Vec<String> {
    let now = certificates.now();
    let mut warnings = Vec::new();
    for status in certificates.status() {
        let identity = certificates.get(&status.identity);
        for authority in identity.iter().flat_map(|identity| identity.authorities()) {
            let what = format!("the intermediate CA {:?}", authority.subject);
            warnings.extend(of_life(&what, authority.not_before, authority.not_after, now));
        }
    }
    let trust = certificates.roots();
    for root in trust.authorities() {
        let what = format!("the root {:?} ({})", root.subject, root.serial);
        warnings.extend(of_life(&what, root.not_before, root.not_after, now));
    }
    for list in trust.revocations().crls() {
        let what = format!("the revocation list of {:?}", list.issuer());
        warnings.extend(of_life(&what, list.this_update(), list.next_update(), now));
    }
    warnings.sort();
    warnings.dedup();
    warnings
}

/// Returns what is wrong with a certificate. Renewal is due at half life, so one that is about to expire was not
/// renewed.
fn of_certificate(status: &CertStatus, now: UnixTime) -> Option<String> {
    let what = format!("the certificate of {}", status.identity);
    let because = match &status.last_error {
        Some(error) => format!("; the last request: {error}"),
        None => String::new(),
    };
    let Some(svid) = &status.certificate else {
        return status.last_error.as_ref().map(|error| format!("{what} has not come: {error}"));
    };
    if svid.not_after < status.next_renewal && now <= svid.not_after {
        return Some(format!("{what} expires before its renewal is tried again{because}"));
    }
    Some(of_life(&what, svid.not_before, svid.not_after, now)? + &because)
}

fn of_life(what: &str, from: UnixTime, until: UnixTime, now: UnixTime) -> Option<String> {
    let between = |a: UnixTime, b: UnixTime| b.as_secs().saturating_sub(a.as_secs());
    if until < now {
        return Some(format!("{what} has expired"));
    }
    if now < from {
        return Some(format!("{what} is not valid yet: check this machine's clock"));
    }
    let notice = (between(from, until) / 5).min(LONGEST_NOTICE.as_secs());
    (between(now, until) < notice).then(|| format!("{what} is about to expire"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn the_last_fifth_of_a_life_is_warned_of_but_at_most_thirty_days() {
        let said = |until, now| of_life("it", at(1000), at(until), at(now));
        assert_eq!(said(2000, 1799), None);
        assert_eq!(said(2000, 1801).as_deref(), Some("it is about to expire"));
        assert_eq!(said(2000, 2001).as_deref(), Some("it has expired"));
        assert!(said(2000, 999).is_some_and(|text| text.contains("clock")));
        let (year, day) = (365 * 86_400, 86_400);
        assert_eq!(said(1000 + 10 * year, 1000 + 10 * year - 31 * day), None);
        assert!(said(1000 + 10 * year, 1000 + 10 * year - 29 * day).is_some());
    }

    #[test]
    fn a_certificate_that_never_came_says_why() {
        let status = |last_error: Option<&str>| CertStatus {
            identity: "spiffe://a/b".parse().unwrap(),
            certificate: None,
            next_renewal: at(5),
            last_error: last_error.map(str::to_owned),
            is_refused: false,
        };
        assert_eq!(of_certificate(&status(None), at(1)), None);
        let warning = of_certificate(&status(Some("refused")), at(1)).unwrap();
        assert_eq!(warning, "the certificate of spiffe://a/b has not come: refused");
    }
}
