//! The source against a real API server: etcd and kube-apiserver, started for the test.
//!
//! The programs are those that `cargo xtask cluster` builds; `SLUICE_KUBERNETES` names another directory of
//! them. Under CI their absence is a failure; elsewhere the tests say that they were skipped.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that fails says where"
)]

mod following;
mod server;
mod world;
