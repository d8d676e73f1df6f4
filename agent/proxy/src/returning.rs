//! Waits for sessions that will be idle in a moment, because their client has nothing more to send.
//!
//! When a client closes one connection and opens the next at once, the server's END of the first has not arrived yet.
//! Waiting for that, well under a millisecond, is cheaper than another handshake.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use crate::{pool::Key, session::Session};

/// How long to wait for a session that is about to return; a handshake takes about half of it.
const PATIENCE: Duration = Duration::from_millis(2);

/// The sessions of all workers that are about to return to their pools.
#[derive(Debug, Default)]
pub(crate) struct Returning {
    expected: Mutex<HashMap<Key, Expected>>,
    returned: Notify,
}

/// How many sessions of a key are about to return, and how many of these somebody waits for.
#[derive(Debug, Default)]
struct Expected {
    announced: usize,
    claimed: usize,
}

/// The return of one stream's session: announced when its client has ended, complete when this is dropped.
#[derive(Debug)]
pub(crate) struct Return<'a> {
    returning: &'a Returning,
    key: &'a Key,
    announced: AtomicBool,
}

// === impl Returning ===

impl Returning {
    /// Prepares the return of the session of a stream that begins.
    pub(crate) fn of<'a>(&'a self, key: &'a Key) -> Return<'a> {
        Return { returning: self, key, announced: AtomicBool::new(false) }
    }

    /// Waits for a session, if one is about to return that nobody else waits for.
    pub(crate) async fn wait(
        &self,
        key: &Key,
        take: impl Fn() -> Option<Session>,
    ) -> Option<Session> {
        if !self.claim(key) {
            return None;
        }
        let taken = async {
            loop {
                let returned = self.returned.notified();
                if let Some(session) = take() {
                    return session;
                }
                returned.await;
            }
        };
        timeout(PATIENCE, taken).await.ok()
    }

    /// Reserves one of the expected sessions. Returns whether there was one.
    fn claim(&self, key: &Key) -> bool {
        let mut expected = self.lock();
        match expected.get_mut(key) {
            Some(expected) if expected.claimed < expected.announced => {
                expected.claimed += 1;
                true
            }
            Some(_) | None => false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Expected>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Return ===

impl Return<'_> {
    /// Announces that the client has ended: the session is free as soon as the server has ended too.
    pub(crate) fn announce(&self) {
        if !self.announced.swap(true, Ordering::Relaxed) {
            self.returning.lock().entry(self.key.clone()).or_default().announced += 1;
        }
    }
}

impl Drop for Return<'_> {
    fn drop(&mut self) {
        if !self.announced.load(Ordering::Relaxed) {
            return;
        }
        let mut expected = self.returning.lock();
        if let Some(left) = expected.get_mut(self.key) {
            left.announced = left.announced.saturating_sub(1);
            // One of those who wait, if any, has this one.
            left.claimed = left.claimed.saturating_sub(1);
            if left.announced == 0 {
                expected.remove(self.key);
            }
        }
        drop(expected);
        self.returning.returned.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    #[test]
    fn each_session_that_is_about_to_return_is_promised_once() {
        let (returning, key) = (Returning::default(), key(80));
        let (first, second) = (returning.of(&key), returning.of(&key));
        assert!(!returning.claim(&key));
        first.announce();
        first.announce();
        assert!(returning.claim(&key));
        assert!(!returning.claim(&key), "one session was promised twice");
        second.announce();
        drop(first);
        assert!(returning.claim(&key), "the return of the first has used up the second");
        drop(second);
        assert!(!returning.claim(&key));
        assert!(returning.lock().is_empty());
    }
}
