//! Collects the handshake secrets that rustls has no method for.
//!
//! rustls' unbuffered connections have no exporter. They give out traffic keys, but not the secrets from which the next
//! keys are derived. They do call the hook for key logs with all of these secrets, on the thread that drives the
//! handshake.

use std::cell::RefCell;

use rustls::KeyLog;
use zeroize::Zeroizing;

use crate::binding::Binding;

/// Labels of the secrets in the NSS key log format.
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const EXPORTER: &str = "EXPORTER_SECRET";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// A secret of TLS 1.3's key schedule, as long as the suite's hash.
pub(crate) type Secret = Zeroizing<Box<[u8]>>;

/// The secrets from which the keys of both directions are derived (RFC 8446 section 7.3).
pub(crate) struct TrafficSecrets {
    pub(crate) client: Secret,
    pub(crate) server: Secret,
}

/// The secrets that one step of a handshake has logged.
#[derive(Default)]
pub(crate) struct Seen {
    binding: Option<Binding>,
    client: Option<Secret>,
    server: Option<Secret>,
}

/// A key log that records the secrets of the handshake being driven on this thread.
#[derive(Debug)]
pub(crate) struct Witness;

thread_local! {
    static SEEN: RefCell<Seen> = const { RefCell::new(Seen { binding: None, client: None, server: None }) };
}

/// Runs a step of a handshake. Returns its outcome, and the secrets if this step derived them.
pub(crate) fn watch<T>(step: impl FnOnce() -> T) -> (T, Option<(Binding, TrafficSecrets)>) {
    // Discards what an earlier step, perhaps of another connection, has left.
    SEEN.take();
    let outcome = step();
    let seen = match SEEN.take() {
        Seen { binding: Some(binding), client: Some(client), server: Some(server) } => {
            Some((binding, TrafficSecrets { client, server }))
        }
        Seen { .. } => None,
    };
    (outcome, seen)
}

impl KeyLog for Witness {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        SEEN.with_borrow_mut(|seen| match label {
            CLIENT => seen.client = Some(Zeroizing::new(secret.into())),
            EXPORTER => seen.binding = Some(Binding::of(secret)),
            SERVER => seen.server = Some(Zeroizing::new(secret.into())),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        [CLIENT, EXPORTER, SERVER].contains(&label)
    }
}
