//! Carries one stream between an application's socket and a mesh session.
//!
//! Hand-written polling rather than two copy loops: both directions share one task, so a byte that was read is
//! written in the same turn, and nothing is allocated while both sockets keep up. Back-pressure comes from one rule:
//! nothing is read for a socket that has not taken what it was given.

mod broken;
mod parting;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use sluice_sys::tcp::TcpStream;
use sluice_wire::{Control, Event, HEADER_LENGTH, ResetReason, data_header};
use tokio::io::AsyncWrite;

use crate::{
    live::Live,
    returning::Return,
    scratch::Scratch,
    session::{Broken, MERGE_LENGTH, Session},
};

/// Turns of both directions in one poll, before other connections of the worker get theirs.
const TURNS_PER_POLL: usize = 8;

/// How a stream ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Both directions ended; the session can carry another stream.
    Clean,
    /// An application reset its connection, or is gone, and both agents know: the session can carry
    /// another stream.
    Reset(Resetter),
    /// The application reset its connection, or is gone. The peer was told as far as that was possible.
    Application(io::Error),
    /// The peer tore the stream down.
    Peer(ResetReason),
    /// The session failed.
    Broken(Broken),
    /// The peer's agent closed the session before it saw this stream. Only the head and what is kept were sent, so
    /// the stream may begin again on another session.
    Unseen,
    /// The stream was ended from outside.
    Cut(ResetReason),
}

/// Whose application reset a stream.
#[derive(Debug)]
pub(crate) enum Resetter {
    /// Our own.
    Own(io::Error),
    /// The peer's.
    Peer,
}

/// One stream in flight.
pub(crate) struct Relay<'a> {
    application: &'a mut TcpStream,
    session: &'a mut Session,
    live: &'a Live,
    from: Side,
    /// Application bytes that were read before the relay began.
    head: &'a [u8],
    /// Told when the application has ended, for those who wait for the session.
    ending: Option<&'a Return<'a>>,
    /// Whether the application may still send.
    sending: bool,
    /// How far the peer's direction has come.
    incoming: Incoming,
    /// Whether the stream cannot begin again: more was sent than is kept, or the peer has answered.
    committed: bool,
    /// Bytes of the application that were taken, and counted.
    taken: usize,
    /// What was sent after the head, as long as it may have to be sent again.
    kept: Option<&'a mut Vec<u8>>,
    /// Bytes that the application's socket has not taken yet.
    inbox: Vec<u8>,
}

/// How far the peer's direction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Incoming {
    /// The peer may still send.
    Open,
    /// The peer has ended; the application is still to be told.
    Ended,
    /// The application has been told.
    Told,
}

/// Most bytes that are kept for a stream that may have to begin again.
const MAX_KEPT: usize = 4096;

/// Which side of the mesh an application is on. Decides whose bytes count as sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The application opened the connection.
    Client,
    /// The application accepted it.
    Server,
}

// === impl Relay ===

impl<'a> Relay<'a> {
    /// Makes a relay for a stream between a local application and the session's peer.
    pub(crate) fn new(
        application: &'a mut TcpStream,
        session: &'a mut Session,
        live: &'a Live,
        from: Side,
        head: &'a [u8],
    ) -> Self {
        Self {
            application,
            session,
            live,
            from,
            head,
            ending: None,
            sending: true,
            incoming: Incoming::Open,
            committed: false,
            taken: 0,
            kept: None,
            inbox: Vec::new(),
        }
    }

    /// Makes the relay announce through `ending` that the session is about to be free.
    pub(crate) fn announcing(self, ending: &'a Return<'a>) -> Self {
        Self { ending: Some(ending), ..self }
    }

    /// Makes the relay keep what the application sends, up to [`MAX_KEPT`], until the peer has answered: with it the
    /// stream may begin again on another session. An application often connects and sends in two steps, and then its
    /// first bytes come after the head was read.
    pub(crate) fn keeping(self, kept: &'a mut Vec<u8>) -> Self {
        Self { kept: Some(kept), ..self }
    }

    /// Carries the stream to its end.
    pub(crate) async fn run(mut self) -> Outcome {
        let outcome = poll_fn(|cx| Scratch::lend(|scratch| self.poll(cx, scratch))).await;
        // Each on the heap, so that a connection that idles does not keep the room of how it may end.
        match outcome {
            Outcome::Broken(broken) => Box::pin(self.explain(broken)).await,
            Outcome::Application(error) => Box::pin(self.part(error)).await,
            Outcome::Peer(ResetReason::Application) => Box::pin(self.answer_parting()).await,
            Outcome::Clean
            | Outcome::Reset(_)
            | Outcome::Peer(_)
            | Outcome::Unseen
            | Outcome::Cut(_) => outcome,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<Outcome> {
        if let Some(reason) = self.live.poll_cut(cx) {
            return Poll::Ready(Outcome::Cut(reason));
        }
        for _ in 0..TURNS_PER_POLL {
            let up = self.poll_up(cx, scratch);
            let down = self.poll_down(cx, scratch);
            match (up, down) {
                // What the peer says has ended the stream; that the other direction fails too follows from it.
                (_, Poll::Ready(Err(outcome @ Outcome::Peer(_)))) => return Poll::Ready(outcome),
                (Poll::Ready(Err(outcome)), _) | (_, Poll::Ready(Err(outcome))) => {
                    return Poll::Ready(outcome);
                }
                (Poll::Pending, Poll::Pending) if !self.is_over() => return Poll::Pending,
                _ if self.is_over() => return Poll::Ready(Outcome::Clean),
                _ => {}
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_over(&self) -> bool {
        !self.sending && self.incoming == Incoming::Told && self.session.queued() == 0
    }

    /// Moves bytes from application to mesh. Ready means that something moved.
    fn poll_up(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Result<(), Outcome>> {
        let queued = self.session.queued();
        if queued > MERGE_LENGTH || (!self.sending && queued > 0) {
            return self.poll_flush(cx);
        }
        if !self.sending {
            return Poll::Pending;
        }
        let Scratch { application, outgoing, .. } = scratch;
        let room = application.get_mut(HEADER_LENGTH..).unwrap_or_default();
        let length = if self.head.is_empty() {
            let read = self.poll_application(cx, room);
            if read.is_pending() && queued > 0 {
                return self.poll_flush(cx);
            }
            ready!(read)?
        } else {
            self.take_head(room)
        };
        if length == 0 {
            self.sending = false;
            if let Some(ending) = self.ending {
                ending.announce();
            }
            return Poll::Ready(self.session.queue(&Control::end()).map_err(Outcome::Broken));
        }
        let frame =
            framed(application, length).ok_or(Outcome::Broken(Broken::FrameLength(length)))?;
        self.count(self.from, length);
        self.taken += length;
        Poll::Ready(self.session.poll_send(cx, frame, outgoing).map_err(Outcome::Broken))
    }

    fn poll_application(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<Result<usize, Outcome>> {
        let length =
            ready!(self.application.poll_receive(cx, room)).map_err(Outcome::Application)?;
        let read = room.get(..length).unwrap_or_default();
        // The end of the stream can be read again for another session; bytes cannot, unless they are kept.
        match &mut self.kept {
            Some(kept) if !self.committed && kept.len() + read.len() <= MAX_KEPT => {
                kept.extend_from_slice(read);
            }
            _ if !read.is_empty() => self.commit(),
            _ => {}
        }
        Poll::Ready(Ok(length))
    }

    /// Rules out that the stream begins again, and forgets what was kept.
    fn commit(&mut self) {
        self.committed = true;
        if let Some(kept) = self.kept.take() {
            *kept = Vec::new();
        }
    }

    fn take_head(&mut self, room: &mut [u8]) -> usize {
        let (now, later) = self.head.split_at(self.head.len().min(room.len()));
        if let Some(room) = room.get_mut(..now.len()) {
            room.copy_from_slice(now);
        }
        self.head = later;
        now.len()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Outcome>> {
        self.session.poll_flush(cx).map_err(Outcome::Broken)
    }

    /// Moves bytes from mesh to application. Ready means that something moved.
    fn poll_down(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Result<(), Outcome>> {
        if !self.inbox.is_empty() {
            return self.poll_inbox(cx);
        }
        match self.incoming {
            Incoming::Open => {
                ready!(self.session.poll_receive(cx, scratch)).map_err(Outcome::Broken)?;
                self.deliver(cx, &scratch.plaintext)?;
            }
            Incoming::Ended => {
                ready!(Pin::new(&mut *self.application).poll_shutdown(cx))
                    .map_err(Outcome::Application)?;
                self.incoming = Incoming::Told;
            }
            Incoming::Told => return Poll::Pending,
        }
        Poll::Ready(Ok(()))
    }

    fn poll_inbox(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Outcome>> {
        let written = ready!(Pin::new(&mut *self.application).poll_write(cx, &self.inbox))
            .map_err(Outcome::Application)?;
        self.inbox.drain(..written);
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Gives the application what the peer sent; what it does not take waits in `inbox`.
    fn deliver(&mut self, cx: &mut Context<'_>, mut plaintext: &[u8]) -> Result<(), Outcome> {
        while let Some(event) =
            self.session.decoder.next(&mut plaintext).map_err(|e| Outcome::Broken(e.into()))?
        {
            self.commit();
            match event {
                Event::Data(bytes) => {
                    if let Err(outcome) = self.give(cx, bytes) {
                        // What follows still matters to the session, though not to the application.
                        self.session.unread = plaintext.to_vec();
                        return Err(outcome);
                    }
                }
                Event::End => {
                    self.incoming = Incoming::Ended;
                    self.session.unread = plaintext.to_vec();
                    return Ok(());
                }
                Event::Reset(reason) => {
                    // RESET is the peer's last word, too.
                    self.incoming = Incoming::Told;
                    self.session.unread = plaintext.to_vec();
                    return Err(Outcome::Peer(reason));
                }
                Event::Open(_) => return Err(Outcome::Broken(Broken::UnexpectedOpen)),
            }
        }
        Ok(())
    }

    fn give(&mut self, cx: &mut Context<'_>, mut bytes: &[u8]) -> Result<(), Outcome> {
        self.count(self.from.other(), bytes.len());
        while self.inbox.is_empty() && !bytes.is_empty() {
            match Pin::new(&mut *self.application).poll_write(cx, bytes) {
                Poll::Ready(Ok(written)) => bytes = bytes.get(written..).unwrap_or_default(),
                Poll::Ready(Err(error)) => return Err(Outcome::Application(error)),
                Poll::Pending => break,
            }
        }
        self.inbox.extend_from_slice(bytes);
        Ok(())
    }

    fn count(&self, sender: Side, bytes: usize) {
        match sender {
            Side::Client => self.live.count_sent(bytes),
            Side::Server => self.live.count_received(bytes),
        }
    }
}

/// The frame around the bytes that are in `buffer` behind the room for its header.
fn framed(buffer: &mut [u8], length: usize) -> Option<&[u8]> {
    let frame = buffer.get_mut(..HEADER_LENGTH + length)?;
    *frame.first_chunk_mut()? = data_header(length)?;
    Some(frame)
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Client => Self::Server,
            Self::Server => Self::Client,
        }
    }
}

#[cfg(test)]
mod tests;
