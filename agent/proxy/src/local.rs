//! Connections between two pods of one agent: both ends of their session are in this process.
//!
//! ```text
//!   application A --lo--> outbound ── session: handshake, OPEN ──> inbound: authorize, deliver --lo--> B
//!                            │ <───────────── B's socket, in memory ──────┘
//!                            └─ carries A and B; the session is free for the next stream
//! ```
//!
//! Up to the delivery everything is as between two nodes: certificates prove both identities, and the stream is
//! opened over the network and judged where it arrives. Then the inbound side does not carry the stream over the
//! session, but passes the application's socket to the outbound side.
//!
//! [`Binding`] shows that both ends are here, because only the two ends of one TLS connection can have it. The server
//! announces it in [`Links`] before its flight leaves; the client looks there when its handshake is complete. Nothing
//! of this is on the wire, so a peer elsewhere, or somebody on the path, has nothing to send or repeat to get hold of
//! a socket.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    net::TcpStream,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use sluice_tls::Binding;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    live::{Listed, Live},
    pool::Key,
    scratch::Scratch,
    session::{Broken, Session},
};

/// Most streams that are being opened at once between two pods of one node, and so the most sessions in use. Each is
/// free again within a millisecond, so a burst of connections needs few handshakes and descriptors.
const OPENING: usize = 16;

/// Handshakes whose server, in this process, waits to see whether the client is here too.
#[derive(Debug, Default)]
pub(crate) struct Links(Mutex<HashMap<Binding, Arc<Link>>>);

/// What the two ends of one session share in memory. One stream at a time uses it.
#[derive(Debug, Default)]
pub(crate) struct Link {
    /// Where the client waits for the stream that is being opened.
    waiting: Mutex<Option<oneshot::Sender<Delivered>>>,
}

/// A stream that was let in, with all that the outbound side needs to carry it.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) delivered: Delivered,
    /// What the client has already sent.
    pub(crate) head: Vec<u8>,
}

/// Limits how many streams are being opened at once to pods of the same node.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<Key, Arc<Semaphore>>>);

/// Permission to open a stream, held until the stream is open.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    key: &'a Key,
    permit: Option<OwnedSemaphorePermit>,
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
    /// Gives a stream that was let in to the client that waits for it. Returns the stream as the error if none does.
    fn hand_over(&self, delivered: Delivered) -> Result<(), Delivered> {
        let waiting = lock(&self.waiting).take();
        match waiting {
            Some(waiting) => waiting.send(delivered),
            None => Err(delivered),
        }
    }

    /// Opens a stream whose OPEN is queued in the session. Returns the delivered stream once it is let in and the
    /// session is free. `None` leaves the stream to the session, which then tells what happened.
    pub(crate) async fn open(&self, session: &mut Session, live: &Live) -> Option<Delivered> {
        let (waiting, mut delivered) = oneshot::channel();
        *lock(&self.waiting) = Some(waiting);
        let opened = poll_fn(|cx| poll_open(cx, session, live, &mut delivered)).await;
        // A stream that was handed over before this close is ours to carry, or to end.
        delivered.close();
        let opened = opened.or_else(|| delivered.try_recv().ok());
        if opened.is_some() {
            session.take_tickets().await;
        }
        opened
    }
}

/// Gives a stream that was let in to the client's side, if that is in this process. The session is then free, unless
/// it fails now. Otherwise returns the stream as the error.
pub(crate) async fn hand_over(
    session: &mut Session,
    delivered: Delivered,
) -> Result<Result<(), Broken>, Delivered> {
    let Some(link) = session.link.clone() else { return Err(delivered) };
    // Sends the tickets, which otherwise leave with the first bytes of the application: the client takes them in
    // before it puts its end away.
    let flushed = session.try_flush().await;
    link.hand_over(delivered).map(|()| flushed)
}

// === impl Turns ===

impl Turns {
    /// Waits until few enough streams are being opened with this key. Callers get their turns in the order of their
    /// calls.
    pub(crate) async fn wait<'a>(&'a self, key: &'a Key) -> Turn<'a> {
        let permits = {
            let mut turns = lock(&self.0);
            let fresh = || Arc::new(Semaphore::new(OPENING));
            Arc::clone(turns.entry(key.clone()).or_insert_with(fresh))
        };
        // The semaphore is never closed.
        let permit = permits.acquire_owned().await.ok();
        Turn { turns: self, key, permit }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.permit.take());
        let mut turns = lock(&self.turns.0);
        if turns.get(self.key).is_some_and(|permits| Arc::strong_count(permits) == 1) {
            turns.remove(self.key);
        }
    }
}

fn poll_open(
    cx: &mut Context<'_>,
    session: &mut Session,
    live: &Live,
    delivered: &mut oneshot::Receiver<Delivered>,
) -> Poll<Option<Delivered>> {
    if let Poll::Ready(delivered) = Pin::new(delivered).poll(cx) {
        return Poll::Ready(delivered.ok());
    }
    let is_over = live.poll_cut(cx).is_some()
        || matches!(session.poll_flush(cx), Poll::Ready(Err(_)))
        || Scratch::lend(|scratch| session.poll_answer(cx, scratch)).is_ready();
    if is_over { Poll::Ready(None) } else { Poll::Pending }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
