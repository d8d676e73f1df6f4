//! Decides how many sessions to make ahead. Connections that are opened at once have to wait for as many handshakes, and
//! the last of them waits for all; the next time, perhaps more are opened. So a burst provides for the next one: when it
//! is over, and none of its kind waits, spare sessions are made.
//!
//! Only bursts do that. A destination with one long connection, or a client whom policy turns away, gets no spares; nor
//! are spares that were of no use replaced.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use crate::pool::{Key, MAX_PER_KEY};

/// How many connections make a burst.
const BURST: usize = 8;
/// How many idle sessions to have for each that a burst has left open.
const FACTOR: usize = 3;
/// How long no connection must have begun to wait for a handshake before spares are made.
const QUIET: Duration = Duration::from_millis(300);
/// Most spares of the agent that have not been used yet.
const MAX_SPARES: usize = 256;

/// The bursts that may still need spares, and how many spares there are.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    bursts: Mutex<HashMap<Key, Burst>>,
    /// Held by each spare until it is used or closed.
    unused: Arc<()>,
}

#[derive(Debug)]
struct Burst {
    /// Held by each session that a connection waited for, as long as the session lasts.
    sessions: Arc<()>,
    /// Held by each connection that waits.
    waiting: Arc<()>,
    latest: Instant,
}

/// A connection that waits for a session, until this is dropped.
#[derive(Debug)]
pub(crate) struct Wait {
    burst: Arc<()>,
    _waiting: Arc<()>,
}

/// What a client made a session for, to be kept with it.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// A connection waited for it.
    Connection { _burst: Arc<()> },
    /// It was made ahead and has carried nothing yet.
    Spare { _unused: Arc<()> },
}

/// The task of making the spares that follow from one burst.
#[derive(Debug)]
pub(crate) struct Provision {
    spares: Arc<Spares>,
    key: Key,
}

// === impl Spares ===

impl Spares {
    /// Counts a connection that begins to wait for a session. The first of a burst brings the task of making its spares.
    pub(crate) fn wait(self: &Arc<Self>, key: &Key) -> (Wait, Option<Provision>) {
        let mut bursts = self.lock();
        let is_first = !bursts.contains_key(key);
        let burst = bursts.entry(key.clone()).or_insert_with(Burst::new);
        burst.latest = Instant::now();
        let wait =
            Wait { burst: Arc::clone(&burst.sessions), _waiting: Arc::clone(&burst.waiting) };
        let provision = || Provision { spares: Arc::clone(self), key: key.clone() };
        (wait, is_first.then(provision))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Burst>> {
        self.bursts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Wait ===

impl Wait {
    /// Ends the wait. Returns what the session was made for.
    pub(crate) fn over(self) -> Purpose {
        Purpose::Connection { _burst: self.burst }
    }
}

// === impl Burst ===

impl Burst {
    fn new() -> Self {
        Self { sessions: Arc::default(), waiting: Arc::default(), latest: Instant::now() }
    }

    /// Returns when spares may be made, unless more connections come to wait.
    fn quiet(&self, now: Instant) -> Instant {
        let is_waited_for = Arc::strong_count(&self.waiting) > 1;
        if is_waited_for { now + QUIET } else { self.latest + QUIET }
    }

    /// Returns how many idle sessions should wait for the next burst. What was closed, because the server refused it for
    /// example, needs no more of its kind.
    fn wanted(&self) -> usize {
        let open = Arc::strong_count(&self.sessions) - 1;
        if open < BURST { 0 } else { (open * FACTOR).min(MAX_PER_KEY) }
    }
}

// === impl Provision ===

impl Provision {
    /// Returns whose sessions these are.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// Waits until no connection has waited for a while. Returns what the next spare is made for, or nothing if `idle`
    /// sessions are enough or the agent has as many spares as it may.
    pub(crate) async fn next(&self, idle: impl Fn() -> usize) -> Option<Purpose> {
        loop {
            let (now, idle) = (Instant::now(), idle());
            let quiet = {
                let bursts = self.spares.lock();
                let burst = bursts.get(&self.key)?;
                let quiet = burst.quiet(now);
                if quiet <= now {
                    let unused = &self.spares.unused;
                    // Counted under the lock, so that no two take the last.
                    let is_wanted =
                        idle < burst.wanted() && Arc::strong_count(unused) <= MAX_SPARES;
                    return is_wanted.then(|| Purpose::Spare { _unused: Arc::clone(unused) });
                }
                quiet
            };
            sleep_until(quiet).await;
        }
    }
}

impl Drop for Provision {
    fn drop(&mut self) {
        self.spares.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    /// Counts the sessions of a burst, and returns them and its task.
    fn burst(spares: &Arc<Spares>, key: &Key, size: usize) -> (Vec<Purpose>, Provision) {
        let (waits, mut tasks): (Vec<_>, Vec<_>) = (0..size).map(|_| spares.wait(key)).unzip();
        let task = tasks.swap_remove(0).expect("the first of a burst brings the task");
        assert!(tasks.iter().all(Option::is_none), "one burst brought two tasks");
        (waits.into_iter().map(Wait::over).collect(), task)
    }

    /// Makes the spares of a burst.
    async fn provide(task: &Provision) -> Vec<Purpose> {
        let mut made = Vec::new();
        while let Some(spare) = task.next(|| made.len()).await {
            made.push(spare);
        }
        made
    }

    #[tokio::test]
    async fn a_burst_gets_three_idle_sessions_for_each_that_is_open() {
        let spares = Arc::new(Spares::default());
        for (size, closed, expected) in [
            (1, 0, 0),
            (BURST - 1, 0, 0),
            (BURST, 0, 24),
            (BURST, 1, 0),
            (16, 6, 30),
            (16, 16, 0),
            (500, 0, MAX_PER_KEY),
        ] {
            let (mut sessions, task) = burst(&spares, &key(80), size);
            drop(sessions.drain(..closed));
            assert_eq!(provide(&task).await.len(), expected, "{size} sessions, {closed} closed");
            drop(task);
            assert!(spares.lock().is_empty());
        }
    }

    #[tokio::test]
    async fn the_agent_has_no_more_spares_than_it_may() {
        let spares = Arc::new(Spares::default());
        let mut made = Vec::new();
        for port in 1..=6 {
            let (_sessions, task) = burst(&spares, &key(port), 100);
            made.extend(provide(&task).await);
        }
        assert_eq!(made.len(), MAX_SPARES);
        // A spare that is used or closed is none any more.
        made.truncate(MAX_SPARES - 10);
        let (_sessions, task) = burst(&spares, &key(7), 100);
        assert_eq!(provide(&task).await.len(), 10);
    }

    #[tokio::test]
    async fn idle_sessions_of_the_burst_itself_are_no_less_use_than_spares() {
        let spares = Arc::new(Spares::default());
        let (_sessions, task) = burst(&spares, &key(80), BURST);
        assert!(task.next(|| FACTOR * BURST - 1).await.is_some());
        assert!(task.next(|| FACTOR * BURST).await.is_none());
    }

    #[tokio::test]
    async fn spares_wait_until_no_connection_waits() {
        let spares = Arc::new(Spares::default());
        let (mut sessions, task) = burst(&spares, &key(80), BURST);
        let (slow, _) = spares.wait(&key(80));
        let next = async { (task.next(|| 0).await.is_some(), Instant::now()) };
        let more = async {
            tokio::time::sleep(2 * QUIET).await;
            let over = Instant::now();
            sessions.push(slow.over());
            over
        };
        let ((is_made, made), over) = tokio::join!(next, more);
        assert!(is_made && made >= over, "made while a connection waited");
        sessions.push(spares.wait(&key(80)).0.over());
        let latest = Instant::now();
        assert!(task.next(|| 0).await.is_some());
        assert!(latest.elapsed() >= QUIET * 9 / 10, "made right after a connection had waited");
    }
}
