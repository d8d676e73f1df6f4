//! Limits how much is done at once for those who may share sessions, and lets the rest wait in the order of their calls.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::pool::Key;

/// The turns of all who do one kind of work.
#[derive(Debug)]
pub(crate) struct Turns {
    /// How many of one key may be at work at once.
    at_once: usize,
    permits: Mutex<HashMap<Key, Arc<Semaphore>>>,
}

/// Permission to work until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    key: &'a Key,
    permit: Option<OwnedSemaphorePermit>,
}

// === impl Turns ===

impl Turns {
    pub(crate) fn new(at_once: usize) -> Self {
        Self { at_once, permits: Mutex::default() }
    }

    /// Waits until few enough others with this key are at work.
    pub(crate) async fn wait<'a>(&'a self, key: &'a Key) -> Turn<'a> {
        let permits = {
            let mut permits = self.lock();
            let fresh = || Arc::new(Semaphore::new(self.at_once));
            Arc::clone(permits.entry(key.clone()).or_insert_with(fresh))
        };
        // The semaphore is never closed.
        let permit = permits.acquire_owned().await.ok();
        Turn { turns: self, key, permit }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Semaphore>>> {
        self.permits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut permits = self.turns.lock();
        if permits.get(self.key).is_some_and(|permits| Arc::strong_count(permits) == 1) {
            permits.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;
    use crate::testing::key;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn only_so_many_of_one_key_have_their_turn_and_nothing_is_left_of_it() {
        let (turns, key, other) = (Turns::new(2), key(80), key(81));
        let first = turns.wait(&key).await;
        let second = turns.wait(&key).await;
        assert!(timeout(SOON, turns.wait(&key)).await.is_err(), "three at once");
        let elsewhere = timeout(SOON, turns.wait(&other)).await.expect("another key has to wait");
        drop(first);
        let third = timeout(SOON, turns.wait(&key)).await.expect("a turn was not passed on");
        drop((second, third, elsewhere));
        assert!(turns.lock().is_empty());
    }

    #[tokio::test]
    async fn turns_come_in_the_order_of_the_calls() {
        let (turns, key) = (Turns::new(1), key(80));
        let (order, now) = (Mutex::new(Vec::new()), turns.wait(&key).await);
        let next = async |number| {
            let _turn = turns.wait(&key).await;
            order.lock().unwrap().push(number);
        };
        tokio::join!(next(1), next(2), next(3), async { drop(now) });
        assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
    }
}
