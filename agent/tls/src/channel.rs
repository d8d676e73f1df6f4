//! A TLS connection without sockets: ciphertext and plaintext go in and out through buffers.
//!
//! Built on rustls' unbuffered connections, so that an idle connection owns no buffers: whoever does
//! the I/O lends them. Handshakes, tickets and key updates are driven here; the caller only moves
//! bytes.

mod drive;

use std::net::IpAddr;

use rustls::{Error, client::UnbufferedClientConnection, server::UnbufferedServerConnection};
use sluice_spiffe::SpiffeId;

use crate::{
    binding::{self, Binding},
    error::TlsError,
    identity::{Identity, Peer, PeerError},
};

/// The most ciphertext that one record can be (RFC 8446 section 5.2, with its header).
pub const MAX_RECORD_LENGTH: usize = 5 + 0x4000 + 256;
/// The most that a handshake message may take on the wire. rustls bounds the message (64 KiB), but
/// in pieces of one byte that is a megabyte, which nobody should get for free.
const MAX_HELD: usize = 128 * 1024;

/// One end of a TLS connection.
pub struct Channel {
    end: End,
    /// What rustls has read but not yet done with: the first records of a handshake message that is
    /// spread over several. rustls refers to them by position and panics when they are not at the
    /// front of what it is shown, so every step must show them. Nearly always empty.
    held: Vec<u8>,
    /// Shared with the other end; known once the server's flight is.
    binding: Option<Box<Binding>>,
    /// Why the connection cannot go on.
    failed: Option<Error>,
}

enum End {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What a run over received bytes came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Ciphertext bytes that were taken from the front of the input; the rest is an incomplete record.
    pub taken: usize,
    /// Whether the handshake is over.
    pub established: bool,
    /// Whether the peer said `close_notify`: no more plaintext will come.
    pub closed: bool,
}

// === impl Channel ===

impl Channel {
    /// Begins a connection that succeeds only with the workload `expected` at `place`.
    ///
    /// # Errors
    ///
    /// When the certificate may not be shown any more.
    pub fn connect(
        identity: &Identity,
        expected: &SpiffeId,
        place: IpAddr,
    ) -> Result<Self, TlsError> {
        let connection = identity.client_connection(expected, place)?;
        Ok(Self::over(End::Client(Box::new(connection))))
    }

    /// Awaits a connection from any workload that `identity` is to trust.
    ///
    /// # Errors
    ///
    /// When the certificate may not be shown any more.
    pub fn accept(identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self::over(End::Server(Box::new(identity.server_connection()?))))
    }

    fn over(end: End) -> Self {
        Self { end, held: Vec::new(), binding: None, failed: None }
    }

    /// Takes what was received: plaintext is appended to `plaintext`, and what must be answered
    /// (handshake, tickets, alerts) to `outgoing`. Decrypts in place, so `received` is scribbled over.
    /// An empty `received` starts a client's handshake.
    ///
    /// What was not taken must come first in the next `received`, as this left it.
    ///
    /// # Errors
    ///
    /// When the peer is not acceptable or not TLS; `outgoing` then ends with the alert that says so,
    /// and nothing can be received or sent any more.
    pub fn receive(
        &mut self,
        received: &mut [u8],
        plaintext: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
    ) -> Result<Progress, TlsError> {
        self.check()?;
        binding::forget();
        let outcome = match &mut self.end {
            End::Client(connection) => {
                drive::receive(&mut ***connection, received, plaintext, outgoing)
            }
            End::Server(connection) => {
                drive::receive(&mut ***connection, received, plaintext, outgoing)
            }
        };
        if let Some(noted) = binding::take_noted() {
            self.binding = Some(Box::new(noted));
        }
        match outcome {
            Ok(progress) => {
                self.hold(received.get(progress.taken..).unwrap_or_default(), progress.closed);
                if self.held.len() > MAX_HELD {
                    let error = Error::General("a handshake message in too small pieces".into());
                    self.failed = Some(error);
                }
                self.check()?;
                Ok(progress)
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error.into())
            }
        }
    }

    /// Appends `plaintext` to `outgoing` as records.
    ///
    /// # Errors
    ///
    /// Before the handshake is over, and when the keys are exhausted.
    pub fn send(&mut self, plaintext: &[u8], outgoing: &mut Vec<u8>) -> Result<(), TlsError> {
        self.check()?;
        let held = &mut self.held;
        match &mut self.end {
            End::Client(connection) => drive::send(&mut ***connection, held, plaintext, outgoing)?,
            End::Server(connection) => drive::send(&mut ***connection, held, plaintext, outgoing)?,
        }
        Ok(())
    }

    /// Appends a `close_notify`: the peer knows then that nothing was cut off.
    ///
    /// # Errors
    ///
    /// Before the handshake is over.
    pub fn close(&mut self, outgoing: &mut Vec<u8>) -> Result<(), TlsError> {
        self.check()?;
        let held = &mut self.held;
        match &mut self.end {
            End::Client(connection) => drive::close(&mut ***connection, held, outgoing)?,
            End::Server(connection) => drive::close(&mut ***connection, held, outgoing)?,
        }
        Ok(())
    }

    /// Who is at the other end, once the handshake is over; to be asked before a byte is believed.
    ///
    /// # Errors
    ///
    /// When the peer must not be talked to.
    pub fn peer(&self, identity: &Identity) -> Result<Peer, PeerError> {
        match &self.end {
            End::Client(connection) => identity.peer(connection),
            End::Server(connection) => identity.peer(connection),
        }
    }

    /// Whether this end opened the connection.
    pub fn is_client(&self) -> bool {
        matches!(self.end, End::Client(_))
    }

    /// Takes what the other end alone knows as well. A server has it before its flight is sent, so before
    /// the client can have it, which does when its handshake is over.
    pub fn take_binding(&mut self) -> Option<Binding> {
        self.binding.take().map(|binding| *binding)
    }

    /// Keeps what rustls has read but not taken. `rest` begins with a whole record only then: a
    /// record that rustls has not read is one that is not whole, until the peer has closed.
    fn hold(&mut self, rest: &[u8], closed: bool) {
        if begins_with_whole_record(rest) && !closed {
            rest.clone_into(&mut self.held);
        } else if !self.held.is_empty() {
            self.held = Vec::new();
        }
    }

    fn check(&self) -> Result<(), Error> {
        self.failed.clone().map_or(Ok(()), Err)
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

/// RFC 8446 section 5.1: type, version, length, and as many bytes.
fn begins_with_whole_record(bytes: &[u8]) -> bool {
    match bytes {
        [_, _, _, high, low, body @ ..] => {
            body.len() >= usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
