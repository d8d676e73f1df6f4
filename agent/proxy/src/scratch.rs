//! Buffers that a worker lends to whichever connection is being polled.
//!
//! A connection owns none of them. What it could not finish within one poll is copied to a buffer of its own, sized
//! to the remainder.

use std::cell::Cell;

use sluice_tls::MAX_RECORD_LENGTH;
use sluice_wire::HEADER_LENGTH;

/// Bytes read from a socket at once: four full TLS records, which amortises a system call over
/// enough work and still fits a core's L2 cache together with its ciphertext.
pub(crate) const READ_LENGTH: usize = 64 * 1024;

/// The buffers of one worker.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Room for a frame header, then application bytes on their way into the mesh.
    pub(crate) application: Vec<u8>,
    /// Room for an incomplete record that came before, then ciphertext as received.
    pub(crate) received: Vec<u8>,
    /// Plaintext decrypted from `received`.
    pub(crate) plaintext: Vec<u8>,
    /// Ciphertext to be sent.
    pub(crate) outgoing: Vec<u8>,
}

thread_local! {
    static SPARE: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

// === impl Scratch ===

impl Scratch {
    fn new() -> Self {
        Self {
            application: vec![0; HEADER_LENGTH + READ_LENGTH],
            received: vec![0; MAX_RECORD_LENGTH + READ_LENGTH],
            plaintext: Vec::with_capacity(READ_LENGTH),
            outgoing: Vec::with_capacity(READ_LENGTH + READ_LENGTH / 64),
        }
    }

    /// Runs `work` with this thread's buffers.
    pub(crate) fn lend<R>(work: impl FnOnce(&mut Self) -> R) -> R {
        let mut scratch = SPARE.take().unwrap_or_else(|| Box::new(Self::new()));
        let result = work(&mut scratch);
        SPARE.set(Some(scratch));
        result
    }
}
