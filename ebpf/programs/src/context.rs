//! The only raw reads and writes of program contexts, one module per kind of context.
//!
//! Every read is one instruction with a fixed offset, as the verifier demands. Left to itself, the
//! compiler merges the reads of two branches into one at a computed address, even if they are
//! volatile, which ends in "dereference of modified ctx ptr R6 off=60 disallowed". Hence the
//! assembly.

/// Reads a `u32` field of a context or socket, at its own offset.
macro_rules! word {
    ($type:ty, $context:expr, $field:ident) => {
        word!($type, $context, $field, 0)
    };
    ($type:ty, $context:expr, $field:ident, $index:literal) => {{
        let context: *mut $type = $context;
        let value: u64;
        // SAFETY: the kernel hands every hook a live context of its type for the whole of its run, and
        // sockets are checked for null; the offset is that of a field of four bytes.
        unsafe {
            core::arch::asm!(
                "{value} = *(u32 *)({context} + {offset})",
                value = out(reg) value,
                context = in(reg) context,
                offset = const core::mem::offset_of!($type, $field) + 4 * $index,
                options(nostack, pure, readonly),
            );
        }
        value as u32
    }};
}

/// Reads a pointer field of a context, at its own offset.
macro_rules! pointer {
    ($type:ty, $context:expr, $field:ident) => {{
        let context: *mut $type = $context;
        let value: *mut aya_ebpf::bindings::bpf_sock;
        // SAFETY: as for `word`; the fields that this is used for are unions of one aligned pointer.
        unsafe {
            core::arch::asm!(
                "{value} = *(u64 *)({context} + {offset})",
                value = out(reg) value,
                context = in(reg) context,
                offset = const core::mem::offset_of!($type, $field),
                options(nostack, pure, readonly),
            );
        }
        value
    }};
}

/// Writes one field of a context, at its own offset.
macro_rules! set_field {
    ($context:expr, $($field:tt)+) => {{
        let (context, value) = $context;
        // SAFETY: as for `word`; the verifier admits writes to these fields alone.
        unsafe { (&raw mut (*context).$($field)+).write_volatile(value) }
    }};
}

mod call;
mod event;
mod frame;
mod request;

pub(crate) use call::{SockAddr, boot_time, refuse, task_cgroup, task_process};
pub(crate) use event::SockOps;
pub(crate) use frame::SkBuff;
pub(crate) use request::{Assigned, SkLookup};

pub(crate) const IPPROTO_TCP: u32 = 6;
const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Returns the network-order port that is in the low half of a context's word.
#[inline(always)]
const fn port_of_low_half(word: u32) -> [u8; 2] {
    let [a, b, _, _] = word.to_ne_bytes();
    [a, b]
}
