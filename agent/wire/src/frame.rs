//! The frames of `sluice/1` and their encoding.

use std::net::{IpAddr, SocketAddr};

/// Length of the header before a frame's payload.
pub const HEADER_LENGTH: usize = 4;
/// The longest payload that a frame's 24-bit length field can announce.
pub const MAX_PAYLOAD_LENGTH: usize = 0x00ff_ffff;
/// The longest whole frame other than DATA: OPEN with an IPv6 address.
pub const MAX_CONTROL_LENGTH: usize = HEADER_LENGTH + 19;

/// The type of a frame: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameType {
    /// A stream begins; the payload is the client's address.
    Open = 1,
    /// Bytes of the stream.
    Data = 2,
    /// The sender will send no more on this stream; no payload.
    End = 3,
    /// The stream is torn down; the payload is one byte, the reason.
    Reset = 4,
}

/// Why a stream was torn down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ResetReason {
    /// The application on the sender's side reset its connection.
    Application = 1,
    /// Policy at the destination refuses the client.
    Denied = 2,
    /// The application at the destination does not answer.
    Unreachable = 3,
    /// A policy change ended a stream that was allowed before.
    PolicyChanged = 4,
    /// The sender's certificate or its issuer is no longer accepted.
    Revoked = 5,
    /// The agent is going away and its time to drain is over.
    Draining = 6,
    /// The peer broke the protocol.
    Protocol = 7,
    /// The destination's agent has no descriptors left.
    Overloaded = 8,
    /// A reason that this version does not know.
    Unknown = 255,
}

/// Why bytes from a peer cannot be `sluice/1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A frame type that does not exist.
    #[error("unknown frame type {0}")]
    FrameType(u8),
    /// A control frame whose length is not that of its type.
    #[error("frame type {frame:?} with {length} bytes of payload")]
    Length {
        /// The frame in question.
        frame: FrameType,
        /// The announced payload length.
        length: usize,
    },
    /// OPEN names an address family other than 4 and 6.
    #[error("OPEN with address family {0}")]
    Family(u8),
}

/// A frame without stream bytes, ready to be written: OPEN, END or RESET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    bytes: [u8; MAX_CONTROL_LENGTH],
    length: usize,
}

/// Returns the header of a DATA frame with `length` bytes of payload, or `None` if that is more than
/// [`MAX_PAYLOAD_LENGTH`].
pub fn data_header(length: usize) -> Option<[u8; HEADER_LENGTH]> {
    header(FrameType::Data, length)
}

fn header(frame: FrameType, length: usize) -> Option<[u8; HEADER_LENGTH]> {
    if length > MAX_PAYLOAD_LENGTH {
        return None;
    }
    let [_, high, middle, low] = u32::try_from(length).ok()?.to_be_bytes();
    Some([frame.code(), high, middle, low])
}

// === impl FrameType ===

impl FrameType {
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    pub(crate) const fn from_code(code: u8) -> Result<Self, ProtocolError> {
        match code {
            1 => Ok(Self::Open),
            2 => Ok(Self::Data),
            3 => Ok(Self::End),
            4 => Ok(Self::Reset),
            other => Err(ProtocolError::FrameType(other)),
        }
    }
}

// === impl ResetReason ===

impl ResetReason {
    /// Reads a reason from its code; codes of later versions become [`ResetReason::Unknown`].
    pub const fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Application,
            2 => Self::Denied,
            3 => Self::Unreachable,
            4 => Self::PolicyChanged,
            5 => Self::Revoked,
            6 => Self::Draining,
            7 => Self::Protocol,
            8 => Self::Overloaded,
            _ => Self::Unknown,
        }
    }
}

impl std::fmt::Display for ResetReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Application => "reset by the application",
            Self::Denied => "denied by policy at the destination",
            Self::Unreachable => "the destination application does not answer",
            Self::PolicyChanged => "connection closed due to policy change",
            Self::Revoked => "the peer's certificate is no longer accepted",
            Self::Draining => "the agent went away before the connection ended",
            Self::Protocol => "protocol error",
            Self::Overloaded => "the destination's agent has no descriptors left",
            Self::Unknown => "reset for a reason that this version does not know",
        })
    }
}

// === impl Control ===

impl Control {
    /// Makes an OPEN frame: a stream begins, on behalf of `client`.
    pub fn open(client: SocketAddr) -> Self {
        let mut frame = Self::start(FrameType::Open);
        match client.ip() {
            IpAddr::V4(address) => {
                frame.push(&[4]);
                frame.push(&address.octets());
            }
            IpAddr::V6(address) => {
                frame.push(&[6]);
                frame.push(&address.octets());
            }
        }
        frame.push(&client.port().to_be_bytes());
        frame.finish()
    }

    /// Makes an END frame: the sender has no more bytes for this stream.
    pub fn end() -> Self {
        Self::start(FrameType::End).finish()
    }

    /// Makes a RESET frame: the stream is torn down for this reason.
    pub fn reset(reason: ResetReason) -> Self {
        let mut frame = Self::start(FrameType::Reset);
        frame.push(&[reason as u8]);
        frame.finish()
    }

    /// Returns the encoded frame.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or(&[])
    }

    fn start(frame: FrameType) -> Self {
        let mut control = Self { bytes: [0; MAX_CONTROL_LENGTH], length: 0 };
        control.push(&[frame.code(), 0, 0, 0]);
        control
    }

    fn push(&mut self, part: &[u8]) {
        let end = self.length + part.len();
        if let Some(room) = self.bytes.get_mut(self.length..end) {
            room.copy_from_slice(part);
            self.length = end;
        }
    }

    fn finish(mut self) -> Self {
        // A control payload is at most 19 bytes, so its length fits into the low byte of the length field.
        if let (Some(low), Ok(payload)) =
            (self.bytes.get_mut(3), u8::try_from(self.length - HEADER_LENGTH))
        {
            *low = payload;
        }
        self
    }
}
