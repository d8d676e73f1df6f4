//! Keeps sessions for their next stream, which then costs neither a handshake nor a round trip.
//!
//! Each worker has one pool, from which the others may take. Sessions are kept apart by everything that decides who
//! may use them: the local pod, the address that it speaks from, the address that was dialled and the identity that
//! has to answer there.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use sluice_mesh::WorkloadUid;
use sluice_spiffe::SpiffeId;

use crate::session::Session;

/// Most idle sessions of one key.
pub(crate) const MAX_PER_KEY: usize = 64;
/// Most idle sessions of one worker.
const MAX_IDLE: usize = 1024;
/// How long a session waits in the pool. The server waits longer, so the client's side closes it.
pub(crate) const MAX_IDLE_TIME: Duration = Duration::from_mins(1);

/// Who may use a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The local pod. Its UID is unique over time, so no session passes to a later pod with the same address.
    pub(crate) pod: WorkloadUid,
    /// The identity that it was made with.
    pub(crate) source_identity: SpiffeId,
    /// The address that the pod speaks from.
    pub(crate) source: IpAddr,
    /// The address that was dialled.
    pub(crate) destination: SocketAddr,
    /// The identity that answered there.
    pub(crate) expected: SpiffeId,
}

/// The idle sessions of one worker.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    idle: HashMap<Key, Vec<Session>>,
    count: usize,
}

// === impl Pool ===

impl Pool {
    /// Takes the most recently used session that is still usable.
    pub(crate) fn take(&mut self, key: &Key) -> Option<Session> {
        let sessions = self.idle.get_mut(key)?;
        while let Some(mut session) = sessions.pop() {
            self.count -= 1;
            if session.is_usable() {
                session.begin_use();
                return Some(session);
            }
        }
        self.idle.remove(key);
        None
    }

    /// Returns how many sessions of the key are idle.
    pub(crate) fn idle(&self, key: &Key) -> usize {
        self.idle.get(key).map_or(0, Vec::len)
    }

    /// Puts a session away for the next stream, or closes it if its key has too many. When the pool is full, the
    /// session that was used least recently makes room: destinations that are used now matter more than earlier ones.
    pub(crate) fn put(&mut self, key: Key, mut session: Session) {
        session.last_use = Instant::now();
        if self.idle.get(&key).is_some_and(|sessions| sessions.len() >= MAX_PER_KEY) {
            return session.close();
        }
        if self.count >= MAX_IDLE {
            self.drop_oldest();
        }
        self.idle.entry(key).or_default().push(session);
        self.count += 1;
    }

    fn drop_oldest(&mut self) {
        let oldest = |(_, sessions): &(&Key, &Vec<Session>)| {
            sessions.first().map(|session| session.last_use)
        };
        let Some(key) = self.idle.iter().min_by_key(oldest).map(|(key, _)| key.clone()) else {
            return;
        };
        let Some(sessions) = self.idle.get_mut(&key) else { return };
        if !sessions.is_empty() {
            sessions.remove(0).close();
            self.count -= 1;
        }
        if sessions.is_empty() {
            self.idle.remove(&key);
        }
    }

    /// Closes sessions that have waited too long or were closed by their peer.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.retain(|_, session| {
            now.duration_since(session.last_use) < MAX_IDLE_TIME && session.is_usable()
        });
    }

    /// Closes every session of a pod that has gone.
    pub(crate) fn forget_pod(&mut self, pod: &WorkloadUid) {
        self.retain(|key, _| key.pod != *pod);
    }

    /// Closes all sessions. To be called when the roots or an identity have changed, or the worker retires.
    pub(crate) fn clear(&mut self) {
        self.retain(|_, _| false);
    }

    fn retain(&mut self, mut keep: impl FnMut(&Key, &mut Session) -> bool) {
        let mut count = 0;
        self.idle.retain(|key, sessions| {
            let (kept, dropped): (Vec<_>, Vec<_>) = std::mem::take(sessions)
                .into_iter()
                .map(|mut session| (keep(key, &mut session), session))
                .partition(|(keep, _)| *keep);
            for (_, session) in dropped {
                session.close();
            }
            *sessions = kept.into_iter().map(|(_, session)| session).collect();
            count += sessions.len();
            !sessions.is_empty()
        });
        self.count = count;
    }
}
