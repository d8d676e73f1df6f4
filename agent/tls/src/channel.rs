//! A TLS connection without sockets: ciphertext and plaintext go in and out through buffers.
//!
//! It is built on rustls' unbuffered connections, so an idle connection owns no buffers: whoever does the I/O lends
//! them. Handshakes, tickets and key updates are driven here; the caller only moves bytes. After the handshake little
//! of rustls' state is needed: see [`records`].

mod drive;
mod keys;
mod records;

use std::net::IpAddr;

use rustls::{
    CommonState, Error, ExtractedSecrets, SupportedCipherSuite, client::UnbufferedClientConnection,
    server::UnbufferedServerConnection,
};
use sluice_spiffe::SpiffeId;

use self::records::Records;
use crate::{
    binding::Binding,
    error::TlsError,
    identity::{Identity, Peer, PeerError, TICKETS},
    witness::{self, TrafficSecrets},
};

/// The length of the longest encrypted record, header included (RFC 8446 section 5.2).
pub const MAX_RECORD_LENGTH: usize = 5 + 0x4000 + 256;
/// The most bytes that a handshake message may take on the wire. rustls bounds the message itself (64 KiB), but in
/// pieces of one byte it would take a megabyte, which nobody should get for free.
const MAX_HELD: usize = 128 * 1024;

/// One end of a TLS connection.
pub struct Channel {
    end: End,
    /// Bytes that rustls has read but not yet consumed: the first records of a handshake message that is spread over
    /// several. rustls refers to them by position and panics unless they are at the front of its input, so every step
    /// must pass them. Nearly always empty.
    held: Vec<u8>,
    /// The value shared with the other end; set once the server's flight is made or, at the client, processed.
    binding: Option<Box<Binding>>,
    /// The secrets from which keys are derived, until [`Records`] takes them over.
    secrets: Option<Box<TrafficSecrets>>,
    /// Whether the caller has asked who the peer is; rustls is kept until then.
    introduced: bool,
    /// The error after which the connection cannot go on.
    failed: Option<Error>,
}

enum End {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
    /// Either end after its handshake, without rustls.
    Settled(Box<Records>),
    /// No connection any more: taking over from rustls has failed.
    Lost,
}

/// The result of processing received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The number of ciphertext bytes taken from the front of the input; the rest is an incomplete record or handshake
    /// message.
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

    /// Creates the server's end of a connection from any workload that `identity` trusts.
    ///
    /// # Errors
    ///
    /// When the certificate may not be shown any more.
    pub fn accept(identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self::over(End::Server(Box::new(identity.server_connection()?))))
    }

    fn over(end: End) -> Self {
        let (held, binding, secrets) = (Vec::new(), None, None);
        Self { end, held, binding, secrets, introduced: false, failed: None }
    }

    /// Processes received bytes: appends their plaintext to `plaintext`, and any answer (handshake, tickets, alerts) to
    /// `outgoing`. Decrypts in place, so `received` is overwritten. An empty `received` starts a client's handshake.
    ///
    /// The next `received` must begin with the bytes that were not taken, as this call left them.
    ///
    /// # Errors
    ///
    /// When the peer is not acceptable or does not speak TLS. `outgoing` then ends with the alert that says so, and
    /// nothing more can be received or sent.
    pub fn receive(
        &mut self,
        received: &mut [u8],
        plaintext: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
    ) -> Result<Progress, TlsError> {
        self.check()?;
        let before = plaintext.len();
        let outcome = match &mut self.end {
            End::Settled(records) => records.receive(received, plaintext, outgoing),
            End::Client(_) | End::Server(_) | End::Lost => {
                self.shake_hands(received, plaintext, outgoing)
            }
        };
        let outcome = outcome.and_then(|progress| {
            if progress.established && !progress.closed && self.introduced {
                self.settle(plaintext.len() > before)?;
            }
            Ok(progress)
        });
        outcome.map_err(|error| {
            self.failed = Some(error.clone());
            error.into()
        })
    }

    fn shake_hands(
        &mut self,
        received: &mut [u8],
        plaintext: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
    ) -> Result<Progress, Error> {
        let (outcome, seen) = witness::watch(|| match &mut self.end {
            End::Client(connection) => {
                drive::receive(&mut ***connection, received, plaintext, outgoing)
            }
            End::Server(connection) => {
                drive::receive(&mut ***connection, received, plaintext, outgoing)
            }
            End::Settled(_) | End::Lost => Err(Error::HandshakeNotComplete),
        });
        if let Some((binding, secrets)) = seen {
            self.binding = Some(Box::new(binding));
            self.secrets = Some(Box::new(secrets));
        }
        let progress = outcome?;
        self.hold(received.get(progress.taken..).unwrap_or_default(), progress.closed);
        if self.held.len() > MAX_HELD {
            return Err(Error::General("a handshake message in too small pieces".into()));
        }
        Ok(progress)
    }

    /// Lets go of rustls once it is no longer needed: no part of the handshake is under way, and a client has received
    /// its tickets, which come before any data.
    fn settle(&mut self, heard: bool) -> Result<(), Error> {
        let is_over = match &self.end {
            End::Client(connection) => {
                let tickets = usize::try_from(connection.tls13_tickets_received());
                let expected = connection.handshake_kind().map(|kind| TICKETS.after(kind));
                heard || expected.is_some_and(|expected| tickets.is_ok_and(|had| had >= expected))
            }
            End::Server(_) => true,
            End::Settled(_) | End::Lost => false,
        };
        if !is_over || !self.held.is_empty() {
            return Ok(());
        }
        let Some(secrets) = self.secrets.take() else { return Ok(()) };
        let records = match std::mem::replace(&mut self.end, End::Lost) {
            End::Client(connection) => {
                let suite = connection.negotiated_cipher_suite();
                let (extracted, _) = connection.dangerous_into_kernel_connection()?;
                records(suite, true, *secrets, extracted)?
            }
            End::Server(connection) => {
                let suite = connection.negotiated_cipher_suite();
                let (extracted, _) = connection.dangerous_into_kernel_connection()?;
                records(suite, false, *secrets, extracted)?
            }
            End::Settled(records) => records,
            End::Lost => return Err(Error::HandshakeNotComplete),
        };
        self.end = End::Settled(records);
        Ok(())
    }

    /// Returns whether this is a client's end whose tickets have not been received.
    #[must_use]
    pub fn awaits_tickets(&self) -> bool {
        matches!(self.end, End::Client(_))
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
            End::Settled(records) => records.send(plaintext, outgoing)?,
            End::Lost => return Err(Error::HandshakeNotComplete.into()),
        }
        Ok(())
    }

    /// Appends a `close_notify` to `outgoing`, which tells the peer that nothing was cut off.
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
            End::Settled(records) => records.close(outgoing)?,
            End::Lost => return Err(Error::HandshakeNotComplete.into()),
        }
        Ok(())
    }

    /// Returns who is at the other end, once the handshake is over. Must be called before any byte is believed, and
    /// only once: the state that the answer comes from is released afterwards.
    ///
    /// # Errors
    ///
    /// When the peer must not be talked to.
    pub fn peer(&mut self, identity: &Identity) -> Result<Peer, PeerError> {
        let connection: &CommonState = match &self.end {
            End::Client(connection) => connection,
            End::Server(connection) => connection,
            End::Settled(_) | End::Lost => return Err(PeerError::Forgotten),
        };
        let peer = identity.peer(connection)?;
        self.introduced = true;
        // A failure to settle is reported by the next use of the connection.
        self.failed = self.failed.take().or(self.settle(false).err());
        Ok(peer)
    }

    /// Returns whether this end opened the connection.
    pub fn is_client(&self) -> bool {
        match &self.end {
            End::Client(_) => true,
            End::Settled(records) => records.is_client(),
            End::Server(_) | End::Lost => false,
        }
    }

    /// Takes the value that only the two ends of this connection share. The server has it before it sends its flight
    /// and the client once its handshake is complete, so the server always has it first.
    pub fn take_binding(&mut self) -> Option<Binding> {
        self.binding.take().map(|binding| *binding)
    }

    /// Keeps what rustls has read but not consumed. Only then does `rest` begin with a whole record: until the peer has
    /// closed, rustls reads every record that is whole.
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

fn records(
    suite: Option<SupportedCipherSuite>,
    is_client: bool,
    secrets: TrafficSecrets,
    extracted: ExtractedSecrets,
) -> Result<Box<Records>, Error> {
    let suite = suite.and_then(|suite| suite.tls13()).ok_or(Error::HandshakeNotComplete)?;
    Ok(Box::new(Records::take_over(suite, is_client, secrets, extracted)?))
}

/// Returns whether `bytes` begin with a type, a version, a length and that many bytes (RFC 8446 section 5.1).
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
