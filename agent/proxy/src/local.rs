//! Connections between two pods of one agent: both ends of their session are in this process.
//!
//! ```text
//!   application A --lo--> outbound ── session: handshake over the network ──> inbound: who is A?
//!                            │                                                   │
//!                            │<────────── Host: "streams of A come in here" ─────┘
//!                            └─ each stream: Host judges it and connects to B --lo--> B, and outbound carries A and B
//! ```
//!
//! The handshake is as between two nodes: over the network, where both certificates prove both identities. From then
//! on, for as long as the session is open, streams are opened by a call instead of a message, and nothing of them is
//! on any link. They are judged as those that arrive from elsewhere: by trust and policy of their own moment.
//!
//! [`Binding`] shows that both ends are here, because only the two ends of one TLS connection can have it. The server
//! announces it in [`Links`] before its flight leaves; the client looks there when its handshake is complete. What
//! the client finds is of no use before the server has accepted the client's certificate too. Nothing of this is on the
//! wire, so a peer elsewhere, or somebody on the path, has nothing to send or repeat to get into a pod.

use std::{
    collections::HashMap,
    future::poll_fn,
    net::TcpStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use sluice_tls::Binding;
use sluice_wire::ResetReason;

use crate::{
    inbound::Host,
    live::{Listed, Live},
    scratch::Scratch,
    session::Session,
};

/// Most streams that are being opened at once between two pods of one node, and so the most sessions in use. Each is
/// free again at once, so a burst of connections needs few handshakes and descriptors.
pub(crate) const OPENING: usize = 16;

/// Handshakes whose server, in this process, waits to see whether the client is here too.
#[derive(Debug, Default)]
pub(crate) struct Links(Mutex<HashMap<Binding, Arc<Link>>>);

/// What the two ends of one session share in memory.
#[derive(Debug, Default)]
pub(crate) struct Link {
    server: Mutex<Server>,
    /// Wakes the client, of which there is one.
    waiting: AtomicWaker,
}

/// How far the server's end of a session has come.
#[derive(Debug, Default)]
enum Server {
    /// The client has not been accepted yet.
    #[default]
    Undecided,
    Open(Arc<Host>),
    Ended,
}

/// What a client finds at the other end of its session.
#[derive(Debug)]
pub(crate) enum Found {
    Host(Arc<Host>),
    /// The server has ended the session, whether or not the network tells.
    Ended,
    /// Nothing, and the session tells why.
    Nothing,
    /// The connection is to be cut.
    Cut(ResetReason),
}

/// The server's end of a session, open to its client until this is dropped.
#[derive(Debug)]
pub(crate) struct Offer(Arc<Link>);

/// A stream that was let in, with all that the outbound side needs to carry it.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) delivered: Delivered,
    /// What the client has already sent.
    pub(crate) head: Vec<u8>,
}

/// A server's announcement, withdrawn when this is dropped.
#[derive(Debug)]
pub(crate) struct Announced<'a> {
    links: &'a Links,
    binding: Binding,
    link: Arc<Link>,
}

/// A stream that the inbound side has let in, for the outbound side to carry.
#[derive(Debug)]
pub(crate) struct Delivered {
    /// Socket connected to the application, not yet registered with a runtime.
    pub(crate) application: TcpStream,
    /// The connection as it is listed for the server's pod.
    pub(crate) live: Listed,
}

// === impl Links ===

impl Links {
    /// Announces a server's handshake. To be called before the server's flight leaves.
    pub(crate) fn announce(&self, binding: Binding) -> Announced<'_> {
        let link = Arc::new(Link::default());
        lock(&self.0).insert(binding.clone(), Arc::clone(&link));
        Announced { links: self, binding, link }
    }

    /// Returns the link that the server has announced, if it is in this process. To be called when the client's
    /// handshake is complete, before the client tells the server so.
    pub(crate) fn claim(&self, binding: &Binding) -> Option<Arc<Link>> {
        lock(&self.0).remove(binding)
    }
}

impl Announced<'_> {
    /// Ends the announcement when the server's handshake is complete. Returns the link if the client is in this
    /// process.
    pub(crate) fn settle(self) -> Option<Arc<Link>> {
        let unclaimed = lock(&self.links.0).remove(&self.binding);
        unclaimed.is_none().then(|| Arc::clone(&self.link))
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        lock(&self.links.0).remove(&self.binding);
    }
}

// === impl Link ===

impl Link {
    /// Opens the server's end to the client, whom the server has accepted.
    pub(crate) fn offer(self: Arc<Self>, host: Host) -> Offer {
        *lock(&self.server) = Server::Open(Arc::new(host));
        self.waiting.wake();
        Offer(self)
    }

    /// Waits until the server has accepted the client, or something else is known.
    pub(crate) async fn host(&self, session: &mut Session, live: &Live) -> Found {
        let found = poll_fn(|cx| self.poll_host(cx, session, live)).await;
        if matches!(found, Found::Host(_)) {
            session.take_tickets().await;
        }
        found
    }

    /// Whether the server has ended the session.
    pub(crate) fn has_ended(&self) -> bool {
        matches!(*lock(&self.server), Server::Ended)
    }

    fn poll_host(&self, cx: &mut Context<'_>, session: &mut Session, live: &Live) -> Poll<Found> {
        self.waiting.register(cx.waker());
        match &*lock(&self.server) {
            Server::Undecided => {}
            Server::Open(host) => return Poll::Ready(Found::Host(Arc::clone(host))),
            Server::Ended => return Poll::Ready(Found::Ended),
        }
        if let Some(reason) = live.poll_cut(cx) {
            return Poll::Ready(Found::Cut(reason));
        }
        let is_over = matches!(session.poll_flush(cx), Poll::Ready(Err(_)))
            || Scratch::lend(|scratch| session.poll_answer(cx, scratch)).is_ready();
        if is_over { Poll::Ready(Found::Nothing) } else { Poll::Pending }
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        *lock(&self.0.server) = Server::Ended;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
