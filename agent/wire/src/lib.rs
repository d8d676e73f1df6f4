//! The wire format: `sluice/1` framing, and what the first bytes of a connection say about it.
//!
//! Inside a mutual-TLS connection, `sluice/1` carries one application stream at a time:
//!
//! ```text
//!   frame   = type (1 byte)  length (3 bytes, big-endian)  payload
//!   client  : OPEN(client address)  DATA*  END          next stream: OPEN ...
//!   server  :                       DATA*  END
//!   either  : RESET(application) instead of END: the stream is over once the other has said END or RESET
//!             RESET(any other reason) ends the stream and the connection
//! ```
//!
//! A stream is over when both sides have sent END or RESET; the connection may then carry the next OPEN. The
//! destination is not in the frames: it is the address that was dialled. This crate does no I/O.
#![forbid(unsafe_code)]

mod decoder;
mod frame;
mod hello;

pub use decoder::{Decoder, Event};
pub use frame::{
    Control, FrameType, HEADER_LENGTH, MAX_CONTROL_LENGTH, MAX_PAYLOAD_LENGTH, ProtocolError,
    ResetReason, data_header,
};
pub use hello::{MAX_HELLO_LENGTH, Preamble, classify};

/// The protocol's name in TLS application-layer protocol negotiation (RFC 7301).
pub const ALPN: &[u8] = b"sluice/1";
