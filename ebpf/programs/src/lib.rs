//! Verdicts of the kernel programs: plain functions on ABI types, tested on the host.
//!
//! The binary beside this library holds the hooks; each reads its context, asks here, and acts.
#![cfg_attr(target_arch = "bpf", no_std)]
#![forbid(unsafe_code)]
#![expect(
    clippy::inline_always,
    reason = "a BPF subprogram returns one register, and the verifier refuses an enum packed into it whose payload is undefined"
)]

// Only the binary uses these crates. On the host, aya's `memcpy` would replace libc's, even inside
// libc.
#[cfg(target_arch = "bpf")]
use {aya_ebpf as _, aya_log_ebpf as _};

pub mod verdict;
