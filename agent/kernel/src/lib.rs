//! Loads, attaches, pins and reads the BPF programs; the only crate that names aya.
