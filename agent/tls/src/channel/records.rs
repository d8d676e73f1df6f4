//! A connection after its handshake: records, and the few messages that may still come.
//!
//! After a handshake rustls' own state takes some 3.5 KiB at each end, of which the two AEADs are 1.2: it keeps what
//! only the handshake needed. An agent holds thousands of connections that mostly idle. So once the handshake and its
//! tickets are over, this module takes over the keys and lets go of the rest.
//!
//! Little is left to do: RFC 8446 sections 5 (records), 4.6.3 (key update) and 6 (alerts). Anything that a peer may not
//! send at this stage ends the connection, with the alert that the RFC names.

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

/// Types of the handshake messages that may still come (RFC 8446 section 4).
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
/// Length of a handshake message's header: type and length.
const MESSAGE_HEADER: usize = 4;
/// A key update says one of two things.
const KEY_UPDATE_LENGTH: usize = 1;
/// More than a ticket of ours takes: it holds the client's chain, of [`MAX_CHAIN_LENGTH`] bytes at most.
const MAX_TICKET: usize = MAX_CHAIN_LENGTH + 0x1000;
/// Key updates in a row without a byte of data between them; rustls draws the line there too.
const MAX_IDLE_UPDATES: u8 = 32;
/// Alert levels: every alert is fatal except those about closing (RFC 8446 section 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// The keys of both directions, and the state of what is under way.
pub(super) struct Records {
    suite: &'static Tls13CipherSuite,
    is_client: bool,
    // Boxed separately, so that each fits its size class of the allocator.
    sending: Box<Keys>,
    receiving: Box<Keys>,
    sending_secret: Secret,
    receiving_secret: Secret,
    /// The beginning of a handshake message whose rest is still to come.
    message: Vec<u8>,
    /// The number of records after which the sending keys are replaced.
    limit: u64,
    /// Whether the peer has asked us to replace our keys.
    owes_update: bool,
    /// The number of key updates since data last came.
    idle_updates: u8,
}

/// Why a connection ends, and the alert that tells the peer so, if any.
struct Fault(Option<AlertDescription>, Error);

// === impl Records ===

impl Records {
    /// Takes over a connection from rustls. No key may have been replaced before.
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

    /// Does what [`super::Channel::receive`] describes.
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
                    // The connection ends even if the peer cannot be told.
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
                    // Whatever follows is ignored (RFC 8446 section 6.1).
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

    /// Checks that no handshake message is incomplete: other records may not come in between (RFC 8446 section 5.1).
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
            // Bytes are moved only if a message was taken, so a message in small pieces is not copied for each piece.
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
            // One update answers all requests that come before we next send (RFC 8446 section 4.6.3).
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

    /// Called before each data record. Replaces the sending keys if they have sealed enough records or the peer has
    /// asked for it.
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

/// Returns the number of bytes that follow this header.
fn length_of(header: [u8; HEADER_LENGTH]) -> Result<usize, Fault> {
    let [kind, _, _, high, low] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if ContentType::from(kind) != ContentType::ApplicationData {
        return Err(unexpected("a record that is not encrypted"));
    }
    // RFC 8446 section 5.2 allows 256 bytes more than the longest plaintext.
    if length > MAX_PLAINTEXT + 256 {
        return Err(Error::PeerSentOversizedRecord.into());
    }
    Ok(length)
}

/// Returns whether this alert is a `close_notify`: the peer has finished in good order.
fn ends(alert: &[u8]) -> Result<bool, Fault> {
    let [_level, description] = alert else {
        return Err(InvalidMessage::MessageTooShort.into());
    };
    let description = AlertDescription::from(*description);
    let is_end = description == AlertDescription::CloseNotify;
    // `user_canceled` is followed by a `close_notify`.
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
