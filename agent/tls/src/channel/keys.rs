//! The keys of one direction. They seal or open records (RFC 8446 section 5.2), until a key update replaces them
//! (section 7.2).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, LessSafeKey, Nonce, UnboundKey};
use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, PeerMisbehaved, Tls13CipherSuite,
    crypto::tls13::OkmBlock,
};
use zeroize::Zeroizing;

use crate::witness::Secret;

/// Length of a record's header: type, version and length.
pub(super) const HEADER_LENGTH: usize = 5;
/// The most plaintext that one record can carry.
pub(super) const MAX_PLAINTEXT: usize = 0x4000;
/// Length of the tag, which is all that encryption adds to plaintext, type and padding.
const TAG_LENGTH: usize = 16;
/// The type and version that every encrypted record claims: application data, TLS 1.2.
const OUTER: [u8; 3] = [23, 3, 3];

/// The AEAD of one direction, and the state that makes its nonces.
pub(super) struct Keys {
    aead: LessSafeKey,
    iv: [u8; 12],
    /// The number of records so far.
    sequence: u64,
}

// === impl Keys ===

impl Keys {
    /// Takes over the keys that rustls has used for `sequence` records. They must be the first keys derived from
    /// `secret`.
    pub(super) fn taken_over(
        suite: &Tls13CipherSuite,
        secret: &Secret,
        (sequence, keys): (u64, ConnectionTrafficSecrets),
    ) -> Result<Self, Error> {
        let (algorithm, key, iv) = match &keys {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { .. } | _ => return Err(unsupported()),
        };
        let keys = Self::new(algorithm, key.as_ref(), iv.as_ref(), sequence)?;
        if keys.iv == derived_iv(suite, secret)? {
            return Ok(keys);
        }
        Err(Error::General("the peer changed its keys before the handshake was over".into()))
    }

    fn new(
        algorithm: &'static Algorithm,
        key: &[u8],
        iv: &[u8],
        sequence: u64,
    ) -> Result<Self, Error> {
        let key = UnboundKey::new(algorithm, key).map_err(|_unspecified| unsupported())?;
        let iv = iv.try_into().map_err(|_length| unsupported())?;
        Ok(Self { aead: LessSafeKey::new(key), iv, sequence })
    }

    /// Replaces these keys, and the secret that they were derived from, by the next.
    pub(super) fn advance(
        &mut self,
        suite: &Tls13CipherSuite,
        secret: &mut Secret,
    ) -> Result<(), Error> {
        let mut next = Zeroizing::new(vec![0; secret.len()].into_boxed_slice());
        expand(suite, secret, b"traffic upd", &mut next)?;
        let algorithm = self.aead.algorithm();
        let mut key = Zeroizing::new([0; 32]);
        let key = key.get_mut(..algorithm.key_len()).unwrap_or_default();
        expand(suite, &next, b"key", key)?;
        *self = Self::new(algorithm, key, &derived_iv(suite, &next)?, 0)?;
        *secret = next;
        Ok(())
    }

    /// Returns the number of records that these keys have sealed or opened.
    pub(super) fn records(&self) -> u64 {
        self.sequence
    }

    /// Forgets the last record, so that its sequence number is used again.
    #[cfg(test)]
    pub(super) fn rewind(&mut self) {
        self.sequence -= 1;
    }

    /// Appends `content`, at most [`MAX_PLAINTEXT`] bytes, to `outgoing` as a record.
    pub(super) fn seal(
        &mut self,
        kind: ContentType,
        content: &[u8],
        outgoing: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let length = content.len() + 1 + TAG_LENGTH;
        let [high, low] = u16::try_from(length).map_err(|_long| Error::EncryptError)?.to_be_bytes();
        let [outer, major, minor] = OUTER;
        let header = [outer, major, minor, high, low];
        let nonce = self.next_nonce().ok_or(Error::EncryptError)?;
        outgoing.reserve(HEADER_LENGTH + length);
        outgoing.extend_from_slice(&header);
        let start = outgoing.len();
        outgoing.extend_from_slice(content);
        outgoing.push(u8::from(kind));
        let inner = outgoing.get_mut(start..).unwrap_or_default();
        let sealed = self.aead.seal_in_place_separate_tag(nonce, Aad::from(header), inner);
        if let Ok(tag) = sealed {
            outgoing.extend_from_slice(tag.as_ref());
            Ok(())
        } else {
            // Never leave plaintext where ciphertext is expected.
            outgoing.truncate(start - HEADER_LENGTH);
            Err(Error::EncryptError)
        }
    }

    /// Decrypts in place the record that has this header. Returns its type and content.
    pub(super) fn open<'a>(
        &mut self,
        header: [u8; HEADER_LENGTH],
        sealed: &'a mut [u8],
    ) -> Result<(ContentType, &'a [u8]), Error> {
        let nonce = self.next_nonce().ok_or(Error::DecryptError)?;
        let inner = self
            .aead
            .open_in_place(nonce, Aad::from(header), sealed)
            .map_err(|_unspecified| Error::DecryptError)?;
        if inner.len() > MAX_PLAINTEXT + 1 {
            return Err(Error::PeerSentOversizedRecord);
        }
        // The type is the last byte that is not zero; what follows it is padding.
        let end = inner.iter().rposition(|byte| *byte != 0);
        match end.and_then(|end| inner.split_at_checked(end)) {
            Some((content, [kind, ..])) if content.len() <= MAX_PLAINTEXT => {
                Ok((ContentType::from(*kind), content))
            }
            Some(_) => Err(Error::PeerSentOversizedRecord),
            None => Err(PeerMisbehaved::IllegalTlsInnerPlaintext.into()),
        }
    }

    /// Returns the next nonce, or `None` if all are used: each sequence number serves once (RFC 8446 section 5.3).
    fn next_nonce(&mut self) -> Option<Nonce> {
        let mut nonce = self.iv;
        let number = self.sequence.to_be_bytes();
        for (byte, number) in nonce.iter_mut().skip(4).zip(number) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1)?;
        Some(Nonce::assume_unique_for_key(nonce))
    }
}

fn derived_iv(suite: &Tls13CipherSuite, secret: &Secret) -> Result<[u8; 12], Error> {
    let mut iv = [0; 12];
    expand(suite, secret, b"iv", &mut iv)?;
    Ok(iv)
}

/// Computes HKDF-Expand-Label without context (RFC 8446 section 7.1).
fn expand(
    suite: &Tls13CipherSuite,
    secret: &Secret,
    label: &[u8],
    output: &mut [u8],
) -> Result<(), Error> {
    const PREFIX: &[u8] = b"tls13 ";
    if secret.len() > OkmBlock::MAX_LEN {
        return Err(unsupported());
    }
    let length = u16::try_from(output.len()).map_err(|_long| unsupported())?.to_be_bytes();
    let label_length = u8::try_from(PREFIX.len() + label.len()).map_err(|_long| unsupported())?;
    suite
        .hkdf_provider
        .expander_for_okm(&OkmBlock::new(secret))
        .expand_slice(&[&length, &[label_length], PREFIX, label, &[0]], output)
        .map_err(|_length| unsupported())
}

/// The error for what cannot happen, because the provider offers only suites that are supported here.
fn unsupported() -> Error {
    Error::General("a cipher suite that was never offered".into())
}
