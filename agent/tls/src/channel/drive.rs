//! Drives rustls' state machine: reads until it has to wait, writes once it may.

use rustls::{
    Error,
    client::ClientConnectionData,
    server::ServerConnectionData,
    unbuffered::{
        ConnectionState, EncodeError, EncodeTlsData, EncryptError, InsufficientSizeError,
        UnbufferedConnectionCommon, UnbufferedStatus, WriteTraffic,
    },
};

use super::Progress;

/// Bytes that a record adds to at most `0x4000` bytes of plaintext: header, content type, tag.
const RECORD_OVERHEAD: usize = 5 + 1 + 16;
const RECORD_PLAINTEXT: usize = 0x4000;
/// Length of a `close_notify` alert as a record.
const CLOSE_NOTIFY_LENGTH: usize = 2 + RECORD_OVERHEAD;

/// The one method that rustls defines separately for client and server.
pub(super) trait Step: Sized {
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

pub(super) fn receive<S: Step>(
    connection: &mut S,
    received: &mut [u8],
    plaintext: &mut Vec<u8>,
    outgoing: &mut Vec<u8>,
) -> Result<Progress, Error> {
    let mut progress = Progress { taken: 0, established: false, closed: false };
    loop {
        let rest = rest_after(received, progress.taken);
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
                let rest = rest_after(received, progress.taken + discard);
                append_alert(connection, rest, outgoing)?;
                return Err(error);
            }
        };
        progress.taken += discard;
        if done {
            return Ok(progress);
        }
    }
}

/// Appends the alert that rustls has queued after an error; nothing else is left to send.
fn append_alert<S: Step>(
    connection: &mut S,
    rest: &mut [u8],
    outgoing: &mut Vec<u8>,
) -> Result<(), Error> {
    if let Ok(ConnectionState::EncodeTlsData(mut data)) = connection.step(rest).state {
        encode(&mut data, outgoing)?;
    }
    Ok(())
}

pub(super) fn send<S: Step>(
    connection: &mut S,
    held: &mut [u8],
    plaintext: &[u8],
    outgoing: &mut Vec<u8>,
) -> Result<(), Error> {
    let records = plaintext.len().div_ceil(RECORD_PLAINTEXT);
    let room = plaintext.len() + records * RECORD_OVERHEAD;
    while_writable(connection, held, outgoing, |traffic, outgoing| {
        let start = outgoing.len();
        outgoing.resize(start + room, 0);
        let written = traffic
            .encrypt(plaintext, outgoing.get_mut(start..).unwrap_or_default())
            .map_err(|error| exhausted(&error))?;
        outgoing.truncate(start + written);
        Ok(())
    })
}

pub(super) fn close<S: Step>(
    connection: &mut S,
    held: &mut [u8],
    outgoing: &mut Vec<u8>,
) -> Result<(), Error> {
    while_writable(connection, held, outgoing, |traffic, outgoing| {
        let start = outgoing.len();
        outgoing.resize(start + CLOSE_NOTIFY_LENGTH, 0);
        let written = traffic
            .queue_close_notify(outgoing.get_mut(start..).unwrap_or_default())
            .map_err(|error| exhausted(&error))?;
        outgoing.truncate(start + written);
        Ok(())
    })
}

/// Appends what rustls wants to send first (key updates, tickets), then calls `write` once rustls
/// may write.
fn while_writable<S: Step>(
    connection: &mut S,
    held: &mut [u8],
    outgoing: &mut Vec<u8>,
    write: impl FnOnce(&mut WriteTraffic<'_, S::Data>, &mut Vec<u8>) -> Result<(), Error>,
) -> Result<(), Error> {
    loop {
        match connection.step(held).state? {
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

fn rest_after(received: &mut [u8], taken: usize) -> &mut [u8] {
    received.get_mut(taken..).unwrap_or_default()
}

fn exhausted(error: &EncryptError) -> Error {
    Error::General(error.to_string())
}
