//! Decodes frames from slices of any size, without copying stream bytes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::frame::{FrameType, HEADER_LENGTH, MAX_CONTROL_LENGTH, ProtocolError, ResetReason};

/// What the peer sent: a control frame, or bytes of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A stream begins, on behalf of this client.
    Open(SocketAddr),
    /// Bytes of the stream; never empty.
    Data(&'a [u8]),
    /// The peer will send no more on this stream.
    End,
    /// The peer tore the stream down.
    Reset(ResetReason),
}

/// Turns plaintext, in pieces of any size, into [`Event`]s. Keeps at most one control frame.
#[derive(Debug, Default)]
pub struct Decoder {
    /// An incomplete header or control frame.
    partial: [u8; MAX_CONTROL_LENGTH],
    filled: usize,
    /// Bytes of the current DATA frame that are still to come.
    data_left: usize,
}

// === impl Decoder ===

impl Decoder {
    /// Takes the next event from the front of `input`. Returns `None` if more bytes are needed; `input` is then
    /// empty.
    ///
    /// # Errors
    ///
    /// When the bytes cannot be `sluice/1`; the connection is of no use afterwards.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        loop {
            if self.data_left > 0 {
                return Ok(self.take_data(input));
            }
            if !self.fill(HEADER_LENGTH, input) {
                return Ok(None);
            }
            let (frame, length) = self.header()?;
            if frame == FrameType::Data {
                self.filled = 0;
                self.data_left = length;
                continue;
            }
            if !self.fill(HEADER_LENGTH + length, input) {
                return Ok(None);
            }
            self.filled = 0;
            return self.control(frame, length).map(Some);
        }
    }

    /// Returns whether the decoder is between two frames: if so, nothing is lost when the input ends here.
    pub fn is_between_frames(&self) -> bool {
        self.filled == 0 && self.data_left == 0
    }

    fn take_data<'a>(&mut self, input: &mut &'a [u8]) -> Option<Event<'a>> {
        let (data, rest) = input.split_at(self.data_left.min(input.len()));
        *input = rest;
        self.data_left -= data.len();
        (!data.is_empty()).then_some(Event::Data(data))
    }

    /// Moves bytes from `input` to `partial`, up to `wanted` in all. Returns whether `partial` holds that many.
    fn fill(&mut self, wanted: usize, input: &mut &[u8]) -> bool {
        let missing = wanted.saturating_sub(self.filled);
        let (part, rest) = input.split_at(missing.min(input.len()));
        if let Some(room) = self.partial.get_mut(self.filled..self.filled + part.len()) {
            room.copy_from_slice(part);
        }
        self.filled += part.len();
        *input = rest;
        self.filled >= wanted
    }

    fn header(&self) -> Result<(FrameType, usize), ProtocolError> {
        let [code, high, middle, low, ..] = self.partial;
        let frame = FrameType::from_code(code)?;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        let fits = match frame {
            FrameType::Open => matches!(length, 7 | 19),
            FrameType::Data => true,
            FrameType::End => length == 0,
            FrameType::Reset => length == 1,
        };
        if fits { Ok((frame, length)) } else { Err(ProtocolError::Length { frame, length }) }
    }

    fn control(&self, frame: FrameType, length: usize) -> Result<Event<'static>, ProtocolError> {
        let [_, _, _, _, first, payload @ ..] = &self.partial;
        match frame {
            FrameType::Open => open(*first, length, payload),
            FrameType::Reset => Ok(Event::Reset(ResetReason::from_code(*first))),
            FrameType::End | FrameType::Data => Ok(Event::End),
        }
    }
}

fn open(
    family: u8,
    length: usize,
    payload: &[u8; MAX_CONTROL_LENGTH - 5],
) -> Result<Event<'static>, ProtocolError> {
    match (family, length) {
        (4, 7) => {
            let [a, b, c, d, high, low, ..] = *payload;
            let port = u16::from_be_bytes([high, low]);
            Ok(Event::Open((Ipv4Addr::new(a, b, c, d), port).into()))
        }
        (6, 19) => {
            let [address @ .., high, low] = *payload;
            Ok(Event::Open((Ipv6Addr::from(address), u16::from_be_bytes([high, low])).into()))
        }
        (4 | 6, _) => Err(ProtocolError::Length { frame: FrameType::Open, length }),
        _ => Err(ProtocolError::Family(family)),
    }
}

#[cfg(test)]
mod tests;
