//! A connection after its handshake: records, and the few messages that may still come.
//!
//! rustls' own state after a handshake is some 3.5 KiB for each end, of which the two AEADs are 1.2: it
//! keeps what only the handshake needed. An agent holds thousands of connections that mostly idle, so once
//! the handshake and its tickets are over this takes the keys and lets go of the rest.
//!
//! What is left to do is small: RFC 8446 sections 5 (records), 4.6.3 (key update) and 6 (alerts). Whatever
//! a peer may not say here ends the connection, with the alert that the RFC names.

use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, InvalidMessage, PeerMisbehaved,
    Tls13CipherSuite,
};

use super::{
    Progress,
    keys::{HEADER_LENGTH, Keys, MAX_PLAINTEXT},
};
use crate::{
    verify::MAX_CHAIN_LENGTH,
    witness::{Secret, TrafficSecrets},
};

/// Handshake messages that may come now (RFC 8446 section 4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// Type and length of a handshake message.
const MESSAGE_HEADER: usize = 4;
/// A key update says one of two things.
const KEY_UPDATE_LENGTH: usize = 1;
/// More than a ticket of ours takes: it holds the client's chain, of [`MAX_CHAIN_LENGTH`] bytes at most.
const MAX_TICKET: usize = MAX_CHAIN_LENGTH + 0x1000;
/// Key updates in a row without a byte of data between them; rustls draws the line there too.
const MAX_IDLE_UPDATES: u8 = 32;
/// Alerts are fatal, but for closing (RFC 8446 section 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Keys of both directions, and what is under way.
pub(super) struct Records {
    suite: &'static Tls13CipherSuite,
    is_client: bool,
    // Apart, so that each fits its size class of the allocator.
    sending: Box<Keys>,
    receiving: Box<Keys>,
    sending_secret: Secret,
    receiving_secret: Secret,
    /// A handshake message of which the rest is still to come.
    message: Vec<u8>,
    /// Records after which keys are replaced.
    limit: u64,
    /// Whether the peer has asked for new keys of ours.
    owes_update: bool,
    /// Key updates since data came last.
    idle_updates: u8,
}

/// Why a connection ends, and what the peer is told.
struct Fault(Option<AlertDescription>, Error);

// === impl Records ===

impl Records {
    /// Takes over where rustls has come to. No key may have been replaced by then.
    pub(super) fn take_over(
        suite: &'static Tls13CipherSuite,
        is_client: bool,
        seen: TrafficSecrets,
        extracted: ExtractedSecrets,
    ) -> Result<Self, Error> {
        let TrafficSecrets { client, server } = seen;
        let (sending_secret, receiving_secret) =
            if is_client { (client, server) } else { (server, client) };
        let ExtractedSecrets { tx, rx } = extracted;
        Ok(Self {
            suite,
            is_client,
            sending: Box::new(Keys::taken_over(suite, &sending_secret, tx)?),
            receiving: Box::new(Keys::taken_over(suite, &receiving_secret, rx)?),
            sending_secret,
            receiving_secret,
            message: Vec::new(),
            limit: suite.common.confidentiality_limit,
            owes_update: false,
            idle_updates: 0,
        })
    }

    pub(super) fn is_client(&self) -> bool {
        self.is_client
    }

    /// As [`super::Channel::receive`].
    pub(super) fn receive(
        &mut self,
        received: &mut [u8],
        plaintext: &mut Vec<u8>,
        outgoing: &mut Vec<u8>,
    ) -> Result<Progress, Error> {
        match self.take(received, plaintext) {
            Ok(progress) => Ok(progress),
            Err(Fault(alert, error)) => {
                if let Some(alert) = alert {
                    // That the peer cannot be told changes nothing here.
                    drop(self.sending.seal(ContentType::Alert, &[FATAL, alert.into()], outgoing));
                }
                Err(error)
            }
        }
    }

    fn take(&mut self, received: &mut [u8], plaintext: &mut Vec<u8>) -> Result<Progress, Fault> {
        let mut progress = Progress { taken: 0, established: true, closed: false };
        let mut rest = received;
        while let Some((header, body)) = rest.split_first_chunk_mut::<HEADER_LENGTH>() {
            let Some((sealed, behind)) = body.split_at_mut_checked(length_of(*header)?) else {
                break;
            };
            progress.taken += HEADER_LENGTH + sealed.len();
            let (kind, content) = self.receiving.open(*header, sealed)?;
            rest = behind;
            if kind == ContentType::ApplicationData {
                self.is_between_messages()?;
                if !content.is_empty() {
                    self.idle_updates = 0;
                }
                plaintext.extend_from_slice(content);
            } else if kind == ContentType::Handshake {
                self.take_messages(content)?;
            } else if kind == ContentType::Alert {
                self.is_between_messages()?;
                if ends(content)? {
                    // Whatever follows does not count (RFC 8446 section 6.1).
                    progress.closed = true;
                    progress.taken += rest.len();
                    break;
                }
            } else {
                return Err(unexpected("a record of another kind"));
            }
        }
        Ok(progress)
    }

    /// Handshake messages are not interleaved with other records (RFC 8446 section 5.1).
    fn is_between_messages(&self) -> Result<(), Fault> {
        if self.message.is_empty() {
            return Ok(());
        }
        Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into())
    }

    fn take_messages(&mut self, content: &[u8]) -> Result<(), Fault> {
        if content.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        self.message.extend_from_slice(content);
        let mut messages = std::mem::take(&mut self.message);
        let mut rest = messages.as_slice();
        while let Some(([kind, length @ ..], behind)) = rest.split_first_chunk::<MESSAGE_HEADER>() {
            let [high, middle, low] = *length;
            let length = u32::from_be_bytes([0, high, middle, low]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            self.expect(*kind, length)?;
            let Some((body, behind)) = behind.split_at_checked(length) else { break };
            rest = behind;
            if *kind == KEY_UPDATE {
                self.replace_receiving_keys(body, rest.is_empty())?;
            }
            // A ticket that comes this late is one more than needed.
        }
        if !rest.is_empty() {
            // Moved only if something was taken, so that a message in small pieces is not copied for each.
            let taken = messages.len() - rest.len();
            messages.drain(..taken);
            self.message = messages;
        }
        Ok(())
    }

    /// Judges a handshake message by its header, before memory is given to the rest of it.
    fn expect(&self, kind: u8, length: usize) -> Result<(), Fault> {
        match kind {
            KEY_UPDATE if length == KEY_UPDATE_LENGTH => Ok(()),
            KEY_UPDATE => Err(InvalidMessage::InvalidKeyUpdate.into()),
            NEW_SESSION_TICKET if self.is_client && length <= MAX_TICKET => Ok(()),
            NEW_SESSION_TICKET if self.is_client => {
                Err(InvalidMessage::HandshakePayloadTooLarge.into())
            }
            _ => Err(unexpected("a handshake message after the handshake")),
        }
    }

    fn replace_receiving_keys(&mut self, body: &[u8], is_last: bool) -> Result<(), Fault> {
        if !is_last {
            return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
        }
        match body {
            [0] => {}
            // One answer for all that ask before we speak again (RFC 8446 section 4.6.3).
            [1] => self.owes_update = true,
            _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
        }
        self.idle_updates += 1;
        if self.idle_updates > MAX_IDLE_UPDATES {
            return Err(PeerMisbehaved::TooManyKeyUpdateRequests.into());
        }
        self.receiving
            .advance(self.suite, &mut self.receiving_secret)
            .map_err(|error| Fault(Some(AlertDescription::InternalError), error))
    }

    /// Appends `plaintext` to `outgoing` as records.
    pub(super) fn send(&mut self, plaintext: &[u8], outgoing: &mut Vec<u8>) -> Result<(), Error> {
        for content in plaintext.chunks(MAX_PLAINTEXT) {
            self.replace_sending_keys(outgoing)?;
            self.sending.seal(ContentType::ApplicationData, content, outgoing)?;
        }
        Ok(())
    }

    /// Appends a `close_notify` to `outgoing`.
    pub(super) fn close(&mut self, outgoing: &mut Vec<u8>) -> Result<(), Error> {
        let alert = [WARNING, AlertDescription::CloseNotify.into()];
        self.sending.seal(ContentType::Alert, &alert, outgoing)
    }

    /// Before a record of data, when these keys have sealed enough of them or the peer has asked.
    fn replace_sending_keys(&mut self, outgoing: &mut Vec<u8>) -> Result<(), Error> {
        if !self.owes_update && self.sending.records() < self.limit {
            return Ok(());
        }
        let not_requested = [KEY_UPDATE, 0, 0, 1, 0];
        self.sending.seal(ContentType::Handshake, &not_requested, outgoing)?;
        self.sending.advance(self.suite, &mut self.sending_secret)?;
        self.owes_update = false;
        Ok(())
    }
}

/// Bytes that follow this header.
fn length_of(header: [u8; HEADER_LENGTH]) -> Result<usize, Fault> {
    let [kind, _, _, high, low] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if ContentType::from(kind) != ContentType::ApplicationData {
        return Err(unexpected("a record that is not encrypted"));
    }
    // RFC 8446 section 5.2: 256 more than plaintext.
    if length > MAX_PLAINTEXT + 256 {
        return Err(Error::PeerSentOversizedRecord.into());
    }
    Ok(length)
}

/// Whether this alert says that the peer has no more to say, in order.
fn ends(alert: &[u8]) -> Result<bool, Fault> {
    let [_level, description] = alert else {
        return Err(InvalidMessage::MessageTooShort.into());
    };
    let description = AlertDescription::from(*description);
    let is_end = description == AlertDescription::CloseNotify;
    // That the user cancelled is followed by the end.
    if is_end || description == AlertDescription::UserCanceled {
        return Ok(is_end);
    }
    // Not answered: the peer has gone.
    Err(Fault(None, Error::AlertReceived(description)))
}

fn unexpected(what: &'static str) -> Fault {
    let error = InvalidMessage::UnexpectedMessage(what);
    Fault(Some(AlertDescription::UnexpectedMessage), Error::InvalidMessage(error))
}

// === impl Fault ===

impl From<InvalidMessage> for Fault {
    fn from(error: InvalidMessage) -> Self {
        Self(Some(AlertDescription::DecodeError), error.into())
    }
}

impl From<PeerMisbehaved> for Fault {
    fn from(error: PeerMisbehaved) -> Self {
        Self(Some(AlertDescription::UnexpectedMessage), error.into())
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let alert = if error == Error::DecryptError {
            AlertDescription::BadRecordMac
        } else if error == Error::PeerSentOversizedRecord {
            AlertDescription::RecordOverflow
        } else {
            AlertDescription::UnexpectedMessage
        };
        Self(Some(alert), error)
    }
}

#[cfg(test)]
mod tests;
