//! The datapath in a real kernel: namespaces, veths, sockets, and programs that are really attached.
//!
//! Needs root, and fails without it: a test that is skipped looks like one that passed.
#![expect(
    unsafe_code,
    reason = "raw and packet sockets, which applications can make, have no safe wrapper"
)]
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::indexing_slicing, reason = "as for unwrap")]

mod capture;
mod exempt;
mod failing;
mod fallbacks;
mod guard;
mod inbound;
mod lab;
mod lifecycle;
mod probes;
mod races;
mod wire;
