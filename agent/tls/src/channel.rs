//! A TLS connection without sockets: ciphertext and plaintext go in and out through buffers.
//!
//! Built on rustls' unbuffered connections, so that an idle connection owns no buffers: whoever does
//! the I/O lends them. Handshakes, tickets and key updates are driven here; the caller only moves
//! bytes.

use std::net::IpAddr;

use rustls::{
    Error,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{
        ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
        UnbufferedConnectionCommon, UnbufferedStatus, WriteTraffic,
    },
};
use sluice_spiffe::SpiffeId;

use crate::{
    error::TlsError,
    identity::{Identity, Peer, PeerError},
};

/// The most ciphertext that one record can be (RFC 8446 section 5.2, with its header).
pub const MAX_RECORD_LENGTH: usize = 5 + 0x4000 + 256;
/// What a record adds to at most `0x4000` bytes of plaintext: header, content type, tag.
const RECORD_OVERHEAD: usize = 5 + 1 + 16;
const RECORD_PLAINTEXT: usize = 0x4000;
/// A `close_notify` alert as a record.
const CLOSE_NOTIFY_LENGTH: usize = 2 + RECORD_OVERHEAD;

/// One end of a TLS connection.
pub struct Channel {
    end: End,
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
        Ok(Self { end: End::Client(Box::new(identity.client_connection(expected, place)?)) })
    }

    /// Awaits a connection from any workload that `identity` is to trust.
    ///
    /// # Errors
    ///
    /// When the certificate may not be shown any more.
    pub fn accept(identity: &Identity) -> Result<Self, TlsError> {
        Ok(Self { end: End::Server(Box::new(identity.server_connection()?)) })
    }

    /// Takes what was received: plaintext is appended to `plaintext`, and what must be answered
    /// (handshake, tickets, alerts) to `outgoing`. Decrypts in place, so `received` is scribbled over.
    /// An empty `received` starts a client's handshake.
    ///
    /// # Errors
    ///
    /// When the peer is not acceptable or not TLS; `outgoing` then ends with the alert that says so.
    pub fn receive(
        &mut self,
        received: &mut [u8],
        plaintext: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
    ) -> Result<Progress, TlsError> {
        Ok(match &mut self.end {
            End::Client(connection) => receive(&mut ***connection, received, plaintext, outgoing)?,
            End::Server(connection) => receive(&mut ***connection, received, plaintext, outgoing)?,
        })
    }

    /// Appends `plaintext` to `outgoing` as records.
    ///
    /// # Errors
    ///
    /// Before the handshake is over, and when the keys are exhausted.
    pub fn send(&mut self, plaintext: &[u8], outgoing: &mut Vec<u8>) -> Result<(), TlsError> {
        match &mut self.end {
            End::Client(connection) => send(&mut ***connection, plaintext, outgoing)?,
            End::Server(connection) => send(&mut ***connection, plaintext, outgoing)?,
        }
        Ok(())
    }

    /// Appends a `close_notify`: the peer knows then that nothing was cut off.
    ///
    /// # Errors
    ///
    /// Before the handshake is over.
    pub fn close(&mut self, outgoing: &mut Vec<u8>) -> Result<(), TlsError> {
        match &mut self.end {
            End::Client(connection) => close(&mut ***connection, outgoing)?,
            End::Server(connection) => close(&mut ***connection, outgoing)?,
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
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").finish_non_exhaustive()
    }
}

/// The one method that rustls gives both ends separately.
trait Step: Sized {
    type Data;

    fn step<'c, 'i>(&'c mut self, received: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Step for UnbufferedConnectionCommon<ClientConnectionData> {
    type Data = ClientConnectionData;

    fn step<'c, 'i>(&'c mut self, received: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }
}

impl Step for UnbufferedConnectionCommon<ServerConnectionData> {
    type Data = ServerConnectionData;

    fn step<'c, 'i>(&'c mut self, received: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(received)
    }
}

fn receive<S: Step>(
    connection: &mut S,
    received: &mut [u8],
    plaintext: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
) -> Result<Progress, Error> {
    let mut progress = Progress { taken: 0, established: false, closed: false };
    loop {
        let rest = received.get_mut(progress.taken..).unwrap_or_default();
        let UnbufferedStatus { mut discard, state } = connection.step(rest);
        let done = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    plaintext.extend_from_slice(record.payload);
                    discard += record.discard;
                }
                false
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                encode(&mut data, outgoing)?;
                false
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                false
            }
            Ok(ConnectionState::PeerClosed) => {
                progress.closed = true;
                false
            }
            Ok(ConnectionState::Closed) => {
                progress.closed = true;
                true
            }
            Ok(ConnectionState::WriteTraffic(_)) => {
                progress.established = true;
                true
            }
            Ok(ConnectionState::BlockedHandshake) => true,
            Ok(_) => return Err(Error::General("early data, which is never offered".into())),
            Err(error) => {
                append_alert(connection, outgoing)?;
                return Err(error);
            }
        };
        progress.taken += discard;
        if done {
            return Ok(progress);
        }
    }
}

/// After an error, the only thing left to say is the alert that rustls has queued.
fn append_alert<S: Step>(connection: &mut S, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.step(&mut []).state {
        encode(&mut data, outgoing)?;
    }
    Ok(())
}

fn send<S: Step>(
    connection: &mut S,
    plaintext: &[u8],
    outgoing: &mut Vec<u8>,
) -> Result<(), Error> {
    let records = plaintext.len().div_ceil(RECORD_PLAINTEXT);
    let room = plaintext.len() + records * RECORD_OVERHEAD;
    while_writable(connection, outgoing, |traffic, outgoing| {
        let start = outgoing.len();
        outgoing.resize(start + room, 0);
        let written = traffic
            .encrypt(plaintext, outgoing.get_mut(start..).unwrap_or_default())
            .map_err(|error| exhausted(&error))?;
        outgoing.truncate(start + written);
        Ok(())
    })
}

fn close<S: Step>(connection: &mut S, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    while_writable(connection, outgoing, |traffic, outgoing| {
        let start = outgoing.len();
        outgoing.resize(start + CLOSE_NOTIFY_LENGTH, 0);
        let written = traffic
            .queue_close_notify(outgoing.get_mut(start..).unwrap_or_default())
            .map_err(|error| exhausted(&error))?;
        outgoing.truncate(start + written);
        Ok(())
    })
}

/// Passes over what rustls wants to say first (key updates, tickets) to the state that may write.
fn while_writable<S: Step>(
    connection: &mut S,
    outgoing: &mut Vec<u8>,
    write: impl FnOnce(&mut WriteTraffic<'_, S::Data>, &mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    loop {
        match connection.step(&mut []).state? {
            ConnectionState::WriteTraffic(mut traffic) => return write(&mut traffic, outgoing),
            ConnectionState::EncodeTlsData(mut data) => encode(&mut data, outgoing)?,
            ConnectionState::TransmitTlsData(data) => data.done(),
            ConnectionState::PeerClosed => {}
            ConnectionState::ReadTraffic(_)
            | ConnectionState::ReadEarlyData(_)
            | ConnectionState::Closed
            | ConnectionState::BlockedHandshake
            | _ => return Err(Error::HandshakeNotComplete),
        }
    }
}

fn encode<D>(data: &mut EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    let start = outgoing.len();
    loop {
        match data.encode(outgoing.get_mut(start..).unwrap_or_default()) {
            Ok(written) => {
                outgoing.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                outgoing.resize(start + required_size, 0);
            }
            Err(error @ EncodeError::AlreadyEncoded) => {
                return Err(Error::General(error.to_string()));
            }
        }
    }
}

fn exhausted(error: &EncryptError) -> Error {
    Error::General(error.to_string())
}
