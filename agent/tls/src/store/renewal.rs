//! The task behind each identity: asks for a certificate when one is due, and again after failure.

use std::{sync::Arc, time::Duration};

use tokio::time::{self, Instant};

use super::{
    Shared,
    entry::{Entry, Failure, Next},
    lock,
};
use crate::{
    clock::{after, between},
    identity::Identity,
    issuer::{Certified, IssueError, News, PendingKey},
    provider::random_fraction,
    verify::{self, PeerRole, VerifyError},
};

/// The shortest time between two requests for one identity.
const PACE: Duration = Duration::from_secs(1);
/// The pause after repeated failure, before jitter of a quarter either way. It is short because the recovery of every
/// workload waits for it; while an authority is down, each identity makes one request in 4 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// How often the clock is checked: a jump is noticed within this time, or when a reader finds the certificate outside
/// its validity.
const LOOK: Duration = Duration::from_secs(10);
/// How long a certificate of an unknown root is kept until that root comes. An authority that also delivers its roots
/// sends both at about the same time, and they reach the store by different ways.
const ROOTS_LIMIT: Duration = Duration::from_millis(500);

/// Keeps `entry` supplied until it is aborted.
pub(super) async fn keep(shared: Arc<Shared>, entry: Arc<Entry>) {
    let mut failures = 0;
    let mut news = shared.issuer.follow(&entry.id);
    loop {
        tokio::select! {
            () = until_due(&shared, &entry) => {}
            () = next_of(&mut news) => {}
        }
        match renew(&shared, &entry).await {
            Ok(()) => failures = 0,
            Err(error) => {
                let pause = pause_after(failures);
                failures += 1;
                tracing::warn!(
                    identity = %entry.id, %error, failures, usable = entry.usable().is_some(),
                    retry_ms = pause.as_millis(), "no new certificate"
                );
                let is_refusal = matches!(error, IssueError::Refused { .. });
                let failure = Failure { text: error.to_string(), is_refusal };
                entry.failed(failure, Next::Retry(Instant::now() + pause));
            }
        }
    }
}

/// Waits for the authority's news, or for ever if it has none to give.
async fn next_of(news: &mut Option<Box<dyn News>>) {
    match news {
        Some(news) => news.wait().await,
        None => std::future::pending().await,
    }
}

async fn until_due(shared: &Shared, entry: &Entry) {
    loop {
        let due = match entry.next() {
            Next::Retry(at) => return time::sleep_until(at).await,
            Next::At(due) => due,
        };
        let rest = between(shared.clock.now(), due);
        if rest.is_zero() || !entry.current().is_some_and(|identity| identity.is_valid()) {
            return;
        }
        tokio::select! {
            () = time::sleep(rest.min(LOOK)) => {}
            () = entry.nudge.notified() => {}
        }
    }
}

async fn renew(shared: &Shared, entry: &Entry) -> Result<(), IssueError> {
    let mut roots = shared.generation.subscribe();
    let certified = ask(shared, entry).await?;
    let deadline = Instant::now() + ROOTS_LIMIT;
    loop {
        match shared.install(entry, &certified) {
            Err(IssueError::Unusable { id, source }) if is_of_unknown_root(&source) => {
                let changed = time::timeout_at(deadline, roots.changed()).await;
                if !matches!(changed, Ok(Ok(()))) {
                    return Err(IssueError::Unusable { id, source });
                }
            }
            done => return done,
        }
    }
}

/// Returns whether the chain was refused for want of its root: it may be good under other roots.
fn is_of_unknown_root(error: &VerifyError) -> bool {
    matches!(error, VerifyError::Path { source: webpki::Error::UnknownIssuer, .. })
}

async fn ask(shared: &Shared, entry: &Entry) -> Result<Certified, IssueError> {
    let id = &entry.id;
    // The semaphore is never closed; without a permit there would merely be no bound.
    let _permit = shared.permits.acquire().await;
    shared.wait_for_turn(entry).await;
    let key = PendingKey::generate(id)?;
    let limit = shared.settings.request_timeout;
    let request = key.request(id, shared.settings.ttl);
    match time::timeout(limit, shared.issuer.issue(request)).await {
        Ok(answer) => key.certified(id, answer?),
        Err(_elapsed) => Err(IssueError::TimedOut { id: id.clone(), after: limit }),
    }
}

/// Returns the pause after a failed attempt that `failures` others came before.
fn pause_after(failures: u32) -> Duration {
    let pause = PACE.saturating_mul(1 << failures.min(8)).min(LONGEST_PAUSE);
    pause.mul_f64(0.75 + random_fraction() / 2.0).max(PACE)
}

impl Shared {
    /// Waits until the identity may be asked for again, and takes that turn.
    async fn wait_for_turn(&self, entry: &Entry) {
        let turn = {
            let now = Instant::now();
            let mut asked = lock(&self.asked);
            asked.retain(|_, at| now.saturating_duration_since(*at) < PACE);
            let turn = asked.get(&entry.id).map_or(now, |last| *last + PACE);
            asked.insert(entry.id.clone(), turn);
            turn
        };
        time::sleep_until(turn).await;
    }

    /// Checks what came as every peer will, and puts it to use.
    fn install(&self, entry: &Entry, certified: &Certified) -> Result<(), IssueError> {
        let id = &entry.id;
        let claims = lock(&self.claims);
        let chain = &certified.key.cert;
        let trust = self.trust.load_full();
        let now = self.clock.now();
        let unusable = |source| IssueError::Unusable { id: id.clone(), source };
        verify::verify_chain(&trust.bundle, chain, PeerRole::Client, now).map_err(unusable)?;
        let svid =
            verify::verify_chain(&trust.bundle, chain, PeerRole::Server, now).map_err(unusable)?;
        if svid.id != *id {
            return Err(IssueError::WrongIdentity { id: id.clone(), issued: svid.id });
        }
        let life = between(now, svid.not_after);
        let due = after(now, life.mul_f64(0.45 + random_fraction() / 10.0));
        let old = entry.current();
        let believes_others =
            old.as_ref().is_some_and(|old| *old.federates_with() != certified.federates_with);
        if !believes_others && old.as_ref().is_some_and(|old| old.chain() == chain) {
            // An authority that makes keys answers with the one it has until it is time for the next.
            entry.succeeded(Next::At(due));
            return Ok(());
        }
        tracing::info!(
            identity = %id, serial = svid.serial, not_after = svid.not_after.as_secs(),
            "new certificate"
        );
        let identity = Identity::new(svid, certified.clone(), (*trust).clone(), old.as_deref())
            .map_err(|source| IssueError::WrongKey { id: id.clone(), source })?;
        entry.succeeded(Next::At(due));
        if !entry.is_abandoned() {
            entry.replace(Arc::new(identity));
            if believes_others {
                // Whom it believed until now is to be asked about again.
                self.put_in_force(&claims, Arc::clone(&trust.bundle));
            }
        }
        Ok(())
    }
}
