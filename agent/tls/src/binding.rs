//! A value that only the two ends of one TLS connection share.
//!
//! The value is derived from the exporter secret of TLS 1.3 (RFC 8446 section 7.5), as the channel binding of RFC 9266
//! is. The secret covers the whole handshake with both certificates, so an attacker between two connections has two
//! different values. If two ends in one process hold the same value, they are the ends of one connection.

use sha2::{Digest, Sha256};

const PURPOSE: &[u8] = b"sluice: both ends are in this process";

/// A value that only the two ends of one TLS connection know. It must never leave the process.
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
