//! The secrets of a handshake that rustls has no method for.
//!
//! rustls' unbuffered connections have no exporter, and give traffic keys away but not the secrets that
//! the next keys follow from. What they have is the hook for key logs, which is called with all of these,
//! on the thread that drives the handshake.

use std::cell::RefCell;

use rustls::KeyLog;
use zeroize::Zeroizing;

use crate::binding::Binding;

/// Names in the NSS key log format.
const CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const EXPORTER: &str = "EXPORTER_SECRET";
const SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

/// A secret of TLS 1.3's key schedule, as long as the suite's hash.
pub(crate) type Secret = Zeroizing<Box<[u8]>>;

/// What the keys of both directions follow from (RFC 8446 section 7.3).
pub(crate) struct TrafficSecrets {
    pub(crate) client: Secret,
    pub(crate) server: Secret,
}

/// What was seen of a handshake.
#[derive(Default)]
pub(crate) struct Seen {
    binding: Option<Binding>,
    client: Option<Secret>,
    server: Option<Secret>,
}

/// Notes the secrets of the handshake that is being driven on this thread.
#[derive(Debug)]
pub(crate) struct Witness;

thread_local! {
    static SEEN: RefCell<Seen> = const { RefCell::new(Seen { binding: None, client: None, server: None }) };
}

/// Runs a step of a handshake; what was seen meanwhile, if the step came to the secrets.
pub(crate) fn watch<T>(step: impl FnOnce() -> T) -> (T, Option<(Binding, TrafficSecrets)>) {
    // What an earlier step left, of whichever connection, is not of this one.
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
