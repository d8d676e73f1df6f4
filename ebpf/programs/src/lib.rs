#![no_std]
//! The kernel programs.
