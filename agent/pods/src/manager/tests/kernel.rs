//! Real kernel.
