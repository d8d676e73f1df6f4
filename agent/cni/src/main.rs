//! The `sluice-cni` program.
#![forbid(unsafe_code)]

fn main() {}
