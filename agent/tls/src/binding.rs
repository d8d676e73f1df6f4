//! A value that the two ends of one TLS connection share, and nobody else.
//!
//! Derived from the exporter secret of TLS 1.3 (RFC 8446 section 7.5), as the channel binding of RFC 9266
//! is: it covers the whole handshake with both certificates, so an attacker who stands between two
//! connections has two values. Two ends that find the same value in one memory are the ends of one
//! connection.

use sha2::{Digest, Sha256};

const PURPOSE: &[u8] = b"sluice: both ends are in this process";

/// What both ends of one TLS connection, and only they, know. Never to leave the process.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Binding([u8; 32]);

impl Binding {
    pub(crate) fn of(exporter_secret: &[u8]) -> Self {
        let digest = Sha256::new().chain_update(PURPOSE).chain_update(exporter_secret).finalize();
        Self(digest.into())
    }
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Binding").finish_non_exhaustive()
    }
}
