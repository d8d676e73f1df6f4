//! A value that the two ends of one TLS connection share, and nobody else.
//!
//! Derived from the exporter secret of TLS 1.3 (RFC 8446 section 7.5), as the channel binding of RFC 9266
//! is: it covers the whole handshake with both certificates, so an attacker who stands between two
//! connections has two values. Two ends that find the same value in one memory are the ends of one
//! connection.
//!
//! rustls' unbuffered connections have no exporter. What they have is the hook for key logs, which is
//! called with this secret, on the thread that drives the handshake, and with nothing else here.

use std::cell::Cell;

use rustls::KeyLog;
use sha2::{Digest, Sha256};

/// The secret's name in the NSS key log format.
const EXPORTER: &str = "EXPORTER_SECRET";
const PURPOSE: &[u8] = b"sluice: both ends are in this process";

/// What both ends of one TLS connection, and only they, know. Never to leave the process.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Binding([u8; 32]);

/// Notes the binding of the handshake that is being driven on this thread.
#[derive(Debug)]
pub(crate) struct Witness;

thread_local! {
    static NOTED: Cell<Option<Binding>> = const { Cell::new(None) };
}

/// Takes the binding that was noted since this was last asked on this thread.
pub(crate) fn take_noted() -> Option<Binding> {
    NOTED.take()
}

/// Forgets what another handshake may have left on this thread.
pub(crate) fn forget() {
    NOTED.set(None);
}

impl KeyLog for Witness {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if label == EXPORTER {
            let digest = Sha256::new().chain_update(PURPOSE).chain_update(secret).finalize();
            NOTED.set(Some(Binding(digest.into())));
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == EXPORTER
    }
}

impl std::fmt::Debug for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Binding").finish_non_exhaustive()
    }
}
