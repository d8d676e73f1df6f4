//! Finds out which optional features this kernel has by trying them, because distributions
//! backport.

use std::io;

use crate::{
    Fallback, Feature,
    syscall::{self, program::AttachType},
};

const CGROUP_SOCK_ADDR: u32 = 18;

const R0: u8 = 0;
const R1: u8 = 1;
/// `r1 = *(u64 *)(r1 + offset)`.
const LOAD_DOUBLE: u8 = 0x79;
const MOVE_IMMEDIATE: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

const HELPER_SET_RETVAL: i32 = 187;
const HELPER_SKC_TO_MPTCP_SOCK: i32 = 196;
/// Offset of `bpf_sock_addr::sk`.
const SOCK_ADDR_SK: i16 = 64;
/// `lo`, which every namespace has.
const LOOPBACK: u32 = 1;

/// The optional features to use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    pub(crate) tcx: bool,
    pub(crate) set_retval: bool,
    pub(crate) mptcp: bool,
}

impl Features {
    /// Tries each feature that is not ruled out.
    pub(crate) fn probe(without: &[Feature]) -> Self {
        let wanted = |feature| !without.contains(&feature);
        Self {
            tcx: wanted(Feature::Tcx) && has_tcx(),
            set_retval: wanted(Feature::SetRetval) && has_set_retval(),
            mptcp: wanted(Feature::Mptcp) && has_mptcp(),
        }
    }

    /// What is done instead of each missing feature.
    pub(crate) fn fallbacks(self) -> Vec<Fallback> {
        let rows = [
            (
                self.tcx,
                Feature::Tcx,
                "the guard is a clsact filter, which no bpffs pin keeps track of",
            ),
            (
                self.set_retval,
                Feature::SetRetval,
                "a refused connect fails with EPERM, not ECONNREFUSED",
            ),
            (self.mptcp, Feature::Mptcp, "MPTCP applications see the agent as their peer"),
        ];
        let missing = rows.into_iter().filter(|(present, ..)| !present);
        missing.map(|(_, feature, instead)| Fallback { feature, instead }).collect()
    }
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let [offset_low, offset_high] = offset.to_ne_bytes();
    let [a, b, c, d] = immediate.to_ne_bytes();
    u64::from_ne_bytes([code, destination | (source << 4), offset_low, offset_high, a, b, c, d])
}

fn has_tcx() -> bool {
    match syscall::program::query(LOOPBACK, AttachType::TCX_INGRESS, 0) {
        Ok(_) => true,
        // "Nothing attached" is also the answer of a kernel that knows the attach type.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

fn has_set_retval() -> bool {
    let program = [
        instruction(MOVE_IMMEDIATE, R1, 0, 0, -libc::ECONNREFUSED),
        instruction(CALL, 0, 0, 0, HELPER_SET_RETVAL),
        instruction(MOVE_IMMEDIATE, R0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    syscall::program::load_probe(CGROUP_SOCK_ADDR, AttachType::CGROUP_INET4_CONNECT, &program)
        .is_ok()
}

fn has_mptcp() -> bool {
    /// `if r1 != 0 goto +2`
    const JUMP_IF_NOT_ZERO: u8 = 0x55;
    let program = [
        instruction(LOAD_DOUBLE, R1, R1, SOCK_ADDR_SK, 0),
        instruction(JUMP_IF_NOT_ZERO, R1, 0, 2, 0),
        instruction(MOVE_IMMEDIATE, R0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(CALL, 0, 0, 0, HELPER_SKC_TO_MPTCP_SOCK),
        instruction(MOVE_IMMEDIATE, R0, 0, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    syscall::program::load_probe(CGROUP_SOCK_ADDR, AttachType::CGROUP_INET4_CONNECT, &program)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_missing_feature_is_named() {
        let none = Features { tcx: false, set_retval: false, mptcp: false };
        assert_eq!(none.fallbacks().len(), 3);
        let all = Features { tcx: true, set_retval: true, mptcp: true };
        assert!(all.fallbacks().is_empty());
    }

    #[test]
    fn instructions_are_laid_out_as_the_kernel_reads_them() {
        let bytes = instruction(LOAD_DOUBLE, R0, R1, 68, -1).to_ne_bytes();
        assert_eq!(bytes, [0x79, 0x10, 68, 0, 0xff, 0xff, 0xff, 0xff]);
    }
}
