//! The compiled kernel programs, embedded at build time.

use crate::Error;

/// Forces the alignment that reading an ELF file in place needs.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/sluice-ebpf")));

/// The object file, if the agent was built with one.
pub(crate) fn object() -> Result<&'static [u8], Error> {
    if OBJECT.0.is_empty() { Err(Error::NoBytecode) } else { Ok(&OBJECT.0) }
}
