//! Tells mesh TLS from an application's own bytes by the first flight.

use crate::ALPN;

/// Limit for a ClientHello, more than a mesh agent's ever needs; a longer one is an application's.
pub const MAX_HELLO_LENGTH: usize = RECORD_HEADER + 0x4000;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_RECORD: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_ALPN: u16 = 16;

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preamble {
    /// Too few bytes to tell. Returned only for a prefix of a TLS ClientHello.
    Undecided,
    /// A ClientHello that offers `sluice/1`.
    Mesh,
    /// The application's own bytes, which may be TLS of its own.
    Application,
}

/// Judges the first bytes of a connection. A mesh agent sends its ClientHello as one record, so one that is split
/// over several records is an application's.
pub fn classify(bytes: &[u8]) -> Preamble {
    let Some((&kind, _)) = bytes.split_first() else {
        return Preamble::Undecided;
    };
    if kind != HANDSHAKE_RECORD || bytes.get(1).is_some_and(|&major| major != 3) {
        return Preamble::Application;
    }
    let (Some(&[high, low]), Some(body)) =
        (bytes.get(3..5).and_then(<[u8]>::first_chunk::<2>), bytes.get(RECORD_HEADER..))
    else {
        return Preamble::Undecided;
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if body.first().is_some_and(|&message| message != CLIENT_HELLO)
        || RECORD_HEADER + length > MAX_HELLO_LENGTH
    {
        return Preamble::Application;
    }
    match body.get(..length) {
        None => Preamble::Undecided,
        Some(record) if offers_mesh(record) == Some(true) => Preamble::Mesh,
        Some(_) => Preamble::Application,
    }
}

/// Walks a ClientHello (RFC 8446 section 4.1.2) to its ALPN extension. Returns whether that lists `sluice/1`, or
/// `None` if the ClientHello is malformed.
fn offers_mesh(record: &[u8]) -> Option<bool> {
    let mut message = Cursor(record);
    message.take(1)?;
    let length = message.number(3)?;
    let mut hello = Cursor(message.take(length)?);
    hello.take(2 + 32)?;
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    let mut extensions = Cursor(hello.vector(2)?);
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let body = extensions.vector(2)?;
        if kind == usize::from(EXTENSION_ALPN) {
            return lists_mesh(body);
        }
    }
    Some(false)
}

fn lists_mesh(body: &[u8]) -> Option<bool> {
    let mut names = Cursor(Cursor(body).vector(2)?);
    while !names.0.is_empty() {
        if names.vector(1)? == ALPN {
            return Some(true);
        }
    }
    Some(false)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(part)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(self.take(bytes)?.iter().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    }

    fn vector(&mut self, length_bytes: usize) -> Option<&'a [u8]> {
        let length = self.number(length_bytes)?;
        self.take(length)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Makes a minimal ClientHello that offers the given protocols.
    fn hello(protocols: &[&[u8]]) -> Vec<u8> {
        let names: Vec<u8> = protocols
            .iter()
            .flat_map(|name| [&[u8::try_from(name.len()).unwrap()][..], name].concat())
            .collect();
        let alpn = [&u16::try_from(names.len()).unwrap().to_be_bytes()[..], &names].concat();
        let extension = [
            &EXTENSION_ALPN.to_be_bytes()[..],
            &u16::try_from(alpn.len()).unwrap().to_be_bytes(),
            &alpn,
        ]
        .concat();
        let extensions = [&[0, 43, 0, 1, 0][..], &extension].concat();
        let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        let mut message = vec![CLIENT_HELLO, 0];
        message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        message.extend(body);
        let mut record = vec![HANDSHAKE_RECORD, 3, 1];
        record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
        record.extend(message);
        record
    }

    #[test]
    fn a_hello_with_our_protocol_is_the_mesh() {
        assert_eq!(classify(&hello(&[ALPN])), Preamble::Mesh);
        assert_eq!(classify(&hello(&[b"h2", ALPN])), Preamble::Mesh);
    }

    #[test]
    fn an_applications_own_tls_is_the_applications() {
        for protocols in [&[][..], &[&b"h2"[..]], &[b"sluice/10"], &[b"sluice/"]] {
            assert_eq!(classify(&hello(protocols)), Preamble::Application, "{protocols:?}");
        }
    }

    #[test]
    fn plaintext_is_recognised_by_its_first_byte() {
        for bytes in
            [&b"GET / HTTP/1.1"[..], b"\0", b"SSH-2.0", &[0x80, 0x2e], &[HANDSHAKE_RECORD, 2]]
        {
            assert_eq!(classify(bytes), Preamble::Application, "{bytes:?}");
        }
    }

    #[test]
    fn every_prefix_of_a_hello_is_undecided() {
        let hello = hello(&[ALPN]);
        for length in 0..hello.len() {
            assert_eq!(classify(&hello[..length]), Preamble::Undecided, "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn damaged_hellos_never_panic(position in 0_usize..90, value: u8, tail in vec(any::<u8>(), 0..40)) {
            let mut bytes = hello(&[ALPN]);
            if let Some(byte) = bytes.get_mut(position) {
                *byte = value;
            }
            bytes.extend(tail);
            classify(&bytes);
        }
    }
}
