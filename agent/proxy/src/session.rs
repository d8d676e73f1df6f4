//! One mutual-TLS connection to another agent, between streams and during them.

mod idle;

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use sluice_spiffe::SpiffeId;
use sluice_sys::tcp::TcpStream;
use sluice_tls::{CertStore, Channel, Identity, Peer, PeerError, TlsError, VerifyError};
use sluice_wire::{Control, Decoder, Event, ProtocolError};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    local::{Link, Links},
    scratch::{READ_LENGTH, Scratch},
    spares::Purpose,
};

/// Bytes that a peer who is busy with the last stream may still have to read before it sees the next one.
const MAX_AHEAD: usize = 64 * 1024;

/// Queued ciphertext up to this length waits for the next application bytes, to leave with them.
pub(crate) const MERGE_LENGTH: usize = 4096;

/// Why a session is of no further use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// The peer's agent closed the connection cleanly.
    #[error("the peer's agent closed the connection")]
    Closed,
    /// The peer's agent, or our own certificate, was too slow.
    #[error("the handshake with the peer's agent was not over within {} s", .0.as_secs())]
    HandshakeTimeout(Duration),
    /// The connection ended without `close_notify`: bytes may be missing.
    #[error("the connection to the peer's agent was cut")]
    Truncated,
    /// The socket failed.
    #[error("connection to the peer's agent: {0}")]
    Socket(#[from] io::Error),
    /// The peer is not acceptable, or does not speak TLS.
    #[error("TLS with the peer's agent: {0}")]
    Tls(#[from] TlsError),
    /// The peer's certificate, or the protocol agreed inside TLS, is not acceptable.
    #[error("the peer's certificate: {0}")]
    Peer(#[from] PeerError),
    /// What was to be sent cannot be framed.
    #[error("BUG: no frame holds {0} bytes")]
    FrameLength(usize),
    /// The peer sent stream bytes outside of a stream.
    #[error("the peer's agent sent bytes outside of a stream")]
    NoStream,
    /// The peer opened a stream inside another.
    #[error("the peer's agent opened a stream inside another")]
    UnexpectedOpen,
    /// The peer does not speak `sluice/1`.
    #[error("the peer's agent: {0}")]
    Protocol(#[from] ProtocolError),
}

/// A mutual-TLS connection whose handshake is over.
#[derive(Debug)]
pub(crate) struct Session {
    tcp: TcpStream,
    channel: Channel,
    pub(crate) decoder: Decoder,
    /// Ciphertext that the socket has not taken yet.
    outbox: Vec<u8>,
    /// An incomplete record that was received.
    partial: Vec<u8>,
    /// Bytes that were sent since the peer was last heard.
    ahead: usize,
    /// Plaintext that arrived behind the end of a stream: it belongs to the next.
    pub(crate) unread: Vec<u8>,
    /// Whether the peer has sent `close_notify`.
    closed: bool,
    /// Who the peer proved to be, and how.
    pub(crate) peer: Peer,
    /// When its last stream ended.
    pub(crate) last_use: Instant,
    /// Joins the session to its other end, if that is in this process.
    pub(crate) link: Option<Arc<Link>>,
    /// At a client's end, what it was made for.
    pub(crate) purpose: Option<Purpose>,
}

// === impl Session ===

impl Session {
    /// Drives a handshake to its end. `received` is what the caller has already read. What is left to be sent (a
    /// client's last flight, a server's tickets) waits to leave with the first stream, unless the caller sends it first.
    pub(crate) async fn handshake(
        mut tcp: TcpStream,
        mut channel: Channel,
        identity: &Identity,
        links: &Links,
        mut received: Vec<u8>,
    ) -> Result<Self, Broken> {
        let mut announced = None;
        let mut outgoing = Vec::new();
        let mut plaintext = Vec::new();
        let closed = loop {
            let step = channel.receive(&mut received, &mut plaintext, &mut outgoing);
            let progress = match step {
                Ok(progress) => progress,
                Err(error) => {
                    // The alert tells the peer why. If it does not arrive, nothing changes here.
                    drop(tcp.write_all(&outgoing).await);
                    return Err(error.into());
                }
            };
            received.drain(..progress.taken);
            if progress.established {
                break progress.closed;
            }
            if !channel.is_client()
                && let Some(binding) = channel.take_binding()
            {
                announced = Some(links.announce(binding));
            }
            if !outgoing.is_empty() {
                tcp.write_all(&outgoing).await?;
                outgoing.clear();
            }
            received.reserve(4096);
            if tcp.read_buf(&mut received).await? == 0 {
                return Err(Broken::Truncated);
            }
        };
        let peer = channel.peer(identity)?;
        let link = match announced {
            Some(announced) => announced.settle(),
            None => channel.take_binding().and_then(|binding| links.claim(&binding)),
        };
        Ok(Self {
            tcp,
            channel,
            decoder: Decoder::default(),
            outbox: exact(outgoing),
            partial: exact(received),
            ahead: 0,
            unread: exact(plaintext),
            closed,
            peer,
            last_use: Instant::now(),
            link,
            purpose: None,
        })
    }

    /// Checks that the peer's certificates would still be accepted. To be called before each stream: a session can
    /// outlive a certificate or its root, and either end can be revoked or denied.
    pub(crate) fn still_trusted(
        &mut self,
        certificates: &CertStore,
        own: &SpiffeId,
    ) -> Result<(), VerifyError> {
        certificates.confirm(&mut self.peer, own)
    }

    /// Waits for the next stream. Returns the address of the client that it is for.
    pub(crate) async fn next_stream(&mut self) -> Result<SocketAddr, Broken> {
        poll_fn(|cx| {
            Scratch::lend(|scratch| {
                loop {
                    ready!(self.poll_receive(cx, scratch))?;
                    let mut plaintext = &scratch.plaintext[..];
                    match self.decoder.next(&mut plaintext)? {
                        Some(Event::Open(client)) => {
                            self.unread = plaintext.to_vec();
                            return Poll::Ready(Ok(client));
                        }
                        Some(_) => return Poll::Ready(Err(Broken::NoStream)),
                        None => {}
                    }
                }
            })
        })
        .await
    }

    /// Puts a frame into the outbox.
    pub(crate) fn queue(&mut self, control: &Control) -> Result<(), Broken> {
        Ok(self.channel.send(control.as_bytes(), &mut self.outbox)?)
    }

    /// Returns how many bytes wait for the socket.
    pub(crate) fn queued(&self) -> usize {
        self.outbox.len()
    }

    /// Encrypts `plaintext`, appends it to what is queued, and hands the socket as much as it takes.
    pub(crate) fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        plaintext: &[u8],
        outgoing: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        outgoing.clear();
        outgoing.append(&mut std::mem::take(&mut self.outbox));
        self.channel.send(plaintext, outgoing)?;
        self.ahead = self.ahead.saturating_add(plaintext.len());
        let mut sent = 0;
        while let Some(rest) = outgoing.get(sent..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.tcp).poll_write(cx, rest) {
                Poll::Ready(Ok(written)) => sent += written,
                Poll::Ready(Err(error)) => return Err(error.into()),
                Poll::Pending => {
                    self.outbox = rest.to_vec();
                    break;
                }
            }
        }
        Ok(())
    }

    /// Hands the socket what is queued; ready when nothing is left.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        while !self.outbox.is_empty() {
            let written = ready!(Pin::new(&mut self.tcp).poll_write(cx, &self.outbox))?;
            self.outbox.drain(..written);
        }
        if self.outbox.capacity() > 0 {
            self.outbox = Vec::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Hands the socket as much of what is queued as it takes at once.
    pub(crate) async fn try_flush(&mut self) -> Result<(), Broken> {
        poll_fn(|cx| match self.poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed),
            Poll::Pending => Poll::Ready(Ok(())),
        })
        .await
    }

    /// Takes what is unread, or else reads once, and leaves the plaintext in `scratch.plaintext`. There may be none.
    pub(crate) fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        scratch: &mut Scratch,
    ) -> Poll<Result<(), Broken>> {
        scratch.plaintext.clear();
        if !self.unread.is_empty() {
            scratch.plaintext.append(&mut std::mem::take(&mut self.unread));
            return Poll::Ready(Ok(()));
        }
        if self.closed {
            return Poll::Ready(Err(Broken::Closed));
        }
        let kept = self.partial.len();
        let room = scratch.received.get_mut(kept..kept + READ_LENGTH).unwrap_or_default();
        match ready!(self.tcp.poll_receive(cx, room))? {
            0 => Poll::Ready(Err(Broken::Truncated)),
            read => Poll::Ready(self.decrypt(kept, read, scratch)),
        }
    }

    /// Ready when the peer has said something, which is kept in `unread`, or the session has failed.
    pub(crate) fn poll_answer(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<()> {
        loop {
            let received = ready!(self.poll_receive(cx, scratch));
            if received.is_err() {
                return Poll::Ready(());
            }
            // Without plaintext, it was a ticket or an incomplete record.
            if !scratch.plaintext.is_empty() {
                self.unread.clone_from(&scratch.plaintext);
                return Poll::Ready(());
            }
        }
    }

    fn decrypt(&mut self, kept: usize, read: usize, scratch: &mut Scratch) -> Result<(), Broken> {
        let Some(received) = scratch.received.get_mut(..kept + read) else {
            return Err(Broken::Truncated);
        };
        if let Some(front) = received.get_mut(..kept) {
            front.copy_from_slice(&self.partial);
        }
        let progress = self.channel.receive(received, &mut scratch.plaintext, &mut self.outbox)?;
        let rest = received.get(progress.taken..).unwrap_or_default();
        if rest.is_empty() {
            if kept > 0 {
                self.partial = Vec::new();
            }
        } else {
            self.partial.clear();
            self.partial.extend_from_slice(rest);
        }
        self.closed |= progress.closed;
        if !scratch.plaintext.is_empty() {
            self.ahead = 0;
        }
        Ok(())
    }

    /// Says farewell, as far as the socket takes it at once, and closes the socket.
    pub(crate) fn close(mut self) {
        // What has arrived is read first: the kernel resets a connection that is closed over unread bytes, and lets go of
        // those that were still to be sent.
        self.is_usable();
        let mut outgoing = std::mem::take(&mut self.outbox);
        if self.channel.close(&mut outgoing).is_ok() {
            // A peer that cannot be told finds out from the end of the connection.
            drop(self.tcp.try_write(&outgoing));
        }
    }

    /// Tears down the stream and the session, and tells the peer as far as the socket takes it at once.
    pub(crate) fn reset(mut self, reason: sluice_wire::ResetReason) {
        if self.queue(&Control::reset(reason)).is_ok() {
            drop(self.tcp.try_write(&self.outbox));
        }
    }
}

/// Returns the same bytes without spare capacity: a session may keep them for as long as it is idle.
fn exact(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.shrink_to_fit();
    bytes
}
