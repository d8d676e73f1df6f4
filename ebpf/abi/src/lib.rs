#![no_std]
//! Types that the kernel programs and the agent both read.
