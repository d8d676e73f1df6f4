//! Where programs can be attached, and which ones are.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{Attribute, address, bpf, owned, raw};

const LOAD: u32 = 5;
const QUERY: u32 = 16;

/// `BPF_F_QUERY_EFFECTIVE`: query what runs, inherited programs included.
const EFFECTIVE: u32 = 1;

/// `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttachType(pub(super) u32);

impl AttachType {
    pub(crate) const CGROUP_SOCK_OPS: Self = Self(3);
    pub(crate) const CGROUP_INET4_CONNECT: Self = Self(10);
    pub(crate) const CGROUP_INET6_CONNECT: Self = Self(11);
    pub(crate) const CGROUP_INET4_GETPEERNAME: Self = Self(29);
    pub(crate) const CGROUP_INET6_GETPEERNAME: Self = Self(30);
    pub(crate) const CGROUP_INET4_GETSOCKNAME: Self = Self(31);
    pub(crate) const CGROUP_INET6_GETSOCKNAME: Self = Self(32);
    pub(crate) const SK_LOOKUP: Self = Self(36);
    pub(crate) const TCX_INGRESS: Self = Self(46);
    pub(crate) const TCX_EGRESS: Self = Self(47);
}

#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    /// Linux 6.6 and later write this field whatever size they are told, so it has to be there.
    revision: u64,
}
// SAFETY: the anonymous struct of `BPF_QUERY` as of Linux 6.6. Older kernels accept a longer struct
// whose tail is zero, and none writes past `revision`.
unsafe impl Attribute for Query {}

/// Largest number of programs per hook that a query returns; the kernel allows 64 per cgroup and
/// interface.
const MAX_PROGRAMS: usize = 128;

/// Returns the ids of the programs on a cgroup, or on the interface of this index.
pub(crate) fn query(target: u32, attach_type: AttachType, flags: u32) -> io::Result<Vec<u32>> {
    let mut programs = vec![0_u32; MAX_PROGRAMS];
    let mut query = Query {
        target,
        attach_type: attach_type.0,
        flags,
        attach_flags: 0,
        programs: address(programs.as_mut_ptr()),
        count: u32::try_from(MAX_PROGRAMS).unwrap_or_default(),
        padding: 0,
        program_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    bpf(QUERY, &mut query)?;
    programs.truncate(usize::try_from(query.count).unwrap_or_default());
    Ok(programs)
}

/// Returns the ids of the programs that are in effect on a cgroup.
pub(crate) fn query_cgroup(
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<Vec<u32>> {
    query(raw(cgroup), attach_type, EFFECTIVE)
}

#[repr(C)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}
// SAFETY: the beginning of the anonymous struct of `BPF_PROG_LOAD`, 72 bytes.
unsafe impl Attribute for Load {}

/// Loads a program of a few instructions, to see whether the kernel knows what it uses.
pub(crate) fn load_probe(
    kind: u32,
    attach_type: AttachType,
    instructions: &[u64],
) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind,
        instruction_count: u32::try_from(instructions.len()).unwrap_or_default(),
        instructions: address(instructions.as_ptr()),
        license: address(c"GPL".as_ptr()),
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"sluice_probe\0\0\0\0",
        ifindex: 0,
        expected_attach_type: attach_type.0,
    };
    owned(bpf(LOAD, &mut load)?)
}
