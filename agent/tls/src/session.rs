//! The sessions that one identity's clients can resume.
//!
//! It differs from rustls' own cache in two ways. It bounds the number of tickets, not of servers, so many connections
//! to one server can each have one. And it forgets a session well before the server's certificate expires: resuming
//! skips the check that would notice the expiry, and would prolong the use of a certificate that the server has since
//! replaced.
//!
//! A burst of connections to a server that is not known yet would need as many full handshakes. So all but the first
//! wait a moment for the tickets of the first: see [`Sessions::acquaintance`].

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::{
    NamedGroup,
    client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue},
};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

use crate::{clock::Clock, identity::half_life};

/// Tickets kept per identity, about 1.4 KiB each: a dozen servers have ten each.
const MAX_TICKETS: usize = 128;
/// Tickets kept for one server: a burst of connections to it leaves the others theirs.
const MAX_PER_SERVER: usize = 64;
/// How long a connection waits for the tickets of others: several round trips within a data centre, and a small delay
/// if the server does not answer.
const PATIENCE: Duration = Duration::from_millis(20);

/// Sessions by server name, which stands for an expected identity at an address.
pub(crate) struct Sessions {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Wakes those who wait in [`Sessions::acquaintance`] when tickets arrive.
    arrived: Notify,
}

#[derive(Default)]
struct State {
    servers: HashMap<ServerName<'static>, Server>,
    /// The number of tickets in all `servers` together.
    tickets: usize,
    /// Counts uses, to find the server that was used least recently.
    tick: u64,
}

#[derive(Default)]
struct Server {
    group: Option<NamedGroup>,
    /// The end of the first half of the server certificates' remaining validity; tickets are not used after it.
    until: Option<UnixTime>,
    tickets: VecDeque<Tls13ClientSessionValue>,
    /// When the last handshake began; for [`PATIENCE`] others wait for its tickets.
    met: Option<Instant>,
    used: u64,
}

// === impl Sessions ===

impl Sessions {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default(), arrived: Notify::new() }
    }

    /// Waits until a handshake with `name` should begin. Returns at once if a session can be resumed or no other
    /// handshake is making this server's acquaintance; otherwise when tickets arrive, after [`PATIENCE`] at the latest.
    pub(crate) async fn acquaintance(&self, name: &ServerName<'static>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let arrived = self.arrived.notified();
            tokio::pin!(arrived);
            // Registered before the state is checked, so that no ticket arrives unnoticed in between.
            arrived.as_mut().enable();
            if self.lock().may_begin(name) || timeout_at(deadline, arrived).await.is_err() {
                return;
            }
        }
    }

    /// Records that a full handshake verified `name` by certificates that are valid until `until`.
    pub(crate) fn server_verified(&self, name: &ServerName<'_>, until: UnixTime) {
        let until = half_life(self.clock.now(), until);
        self.lock().edit(&name.to_owned(), |server| {
            let earlier = server.until.filter(|_| !server.tickets.is_empty());
            server.until = Some(earlier.map_or(until, |earlier| earlier.min(until)));
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under the lock; a poisoned cache is still a cache.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.lock().edit(&server_name, |server| server.group = Some(group));
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.lock().servers.get(&server_name.to_owned()).and_then(|server| server.group)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(
        &self,
        server_name: ServerName<'static>,
        value: Tls13ClientSessionValue,
    ) {
        let mut state = self.lock();
        state.edit(&server_name, |server| server.tickets.push_back(value));
        state.tickets += 1;
        state.drop_excess_ticket(&server_name);
        if state.tickets > MAX_TICKETS {
            state.drop_oldest_ticket();
        }
        drop(state);
        self.arrived.notify_waiters();
    }

    fn take_tls13_ticket(
        &self,
        server_name: &ServerName<'static>,
    ) -> Option<Tls13ClientSessionValue> {
        let now = self.clock.now();
        let mut state = self.lock();
        let server = state.servers.get_mut(server_name)?;
        if server.until.is_none_or(|until| until < now) {
            let forgotten = std::mem::take(&mut server.tickets).len();
            state.tickets -= forgotten;
            return None;
        }
        let ticket = server.tickets.pop_back()?;
        state.tickets -= 1;
        Some(ticket)
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The contents are secrets.
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

// === impl State ===

impl State {
    /// Returns whether a handshake with `name` need not wait for another's tickets. If so, others now wait for its own.
    fn may_begin(&mut self, name: &ServerName<'static>) -> bool {
        let mut begins = false;
        self.edit(name, |server| {
            let now = Instant::now();
            let others = server.met.is_some_and(|met| now.duration_since(met) < PATIENCE);
            begins = !server.tickets.is_empty() || !others;
            if begins {
                server.met = Some(now);
            }
        });
        begins
    }

    fn edit(&mut self, name: &ServerName<'static>, change: impl FnOnce(&mut Server)) {
        self.tick += 1;
        if !self.servers.contains_key(name) {
            if self.servers.len() >= MAX_TICKETS {
                self.drop_least_used();
            }
            self.servers.insert(name.clone(), Server::default());
        }
        if let Some(server) = self.servers.get_mut(name) {
            server.used = self.tick;
            change(server);
        }
    }

    /// Forgets the oldest ticket of a server that has more than its share.
    fn drop_excess_ticket(&mut self, name: &ServerName<'static>) {
        if let Some(server) = self.servers.get_mut(name)
            && server.tickets.len() > MAX_PER_SERVER
        {
            server.tickets.pop_front();
            self.tickets -= 1;
        }
    }

    /// Forgets the server that was used least recently.
    fn drop_least_used(&mut self) {
        let name = self.servers.iter().min_by_key(|(_, server)| server.used);
        if let Some(name) = name.map(|(name, _)| name.clone())
            && let Some(server) = self.servers.remove(&name)
        {
            self.tickets -= server.tickets.len();
        }
    }

    /// Forgets the oldest ticket of the server with the most; among equals, of the one that was used least recently.
    fn drop_oldest_ticket(&mut self) {
        let richest = |server: &&mut Server| (server.tickets.len(), Reverse(server.used));
        if let Some(server) = self.servers.values_mut().max_by_key(richest)
            && server.tickets.pop_front().is_some()
        {
            self.tickets -= 1;
        }
    }
}
