//! Links: programs that are attached, and stay so while a descriptor or pin holds the link.

use std::{
    io,
    mem::size_of,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{Attribute, address, bpf, owned, program::AttachType, raw};

const GET_INFO: u32 = 15;
const CREATE: u32 = 28;
const UPDATE: u32 = 29;
const DETACH: u32 = 34;

/// `BPF_F_BEFORE`: without another program named, puts this one in front of all others.
const BEFORE: u32 = 1 << 3;

#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// For tcx: no program to be placed before or after, any revision.
    relative: [u64; 2],
}
// SAFETY: the prefix of `BPF_LINK_CREATE` that all of our attach types share, and tcx's 16 bytes.
unsafe impl Attribute for Link {}

/// Attaches a program to a cgroup or network namespace.
pub(crate) fn to_fd(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    to: AttachType,
) -> io::Result<OwnedFd> {
    let target = raw(target);
    let mut link =
        Link { program: raw(program), target, attach_type: to.0, flags: 0, relative: [0; 2] };
    owned(bpf(CREATE, &mut link)?)
}

/// Attaches a program to an interface of the calling thread's network namespace, before all others.
pub(crate) fn to_interface(
    program: BorrowedFd<'_>,
    ifindex: u32,
    to: AttachType,
) -> io::Result<OwnedFd> {
    let program = raw(program);
    let mut link =
        Link { program, target: ifindex, attach_type: to.0, flags: BEFORE, relative: [0; 2] };
    owned(bpf(CREATE, &mut link)?)
}

#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}
// SAFETY: the anonymous struct of `BPF_LINK_UPDATE`, 16 bytes.
unsafe impl Attribute for Update {}

/// Puts another program under a link; at no moment is none attached.
pub(crate) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = Update { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    bpf(UPDATE, &mut update).map(drop)
}

#[repr(C)]
struct Detach {
    link: u32,
}
// SAFETY: the anonymous struct of `BPF_LINK_DETACH`, 4 bytes.
unsafe impl Attribute for Detach {}

/// Detaches a link immediately, even if others hold it.
pub(crate) fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(DETACH, &mut Detach { link: raw(link) }).map(drop)
}

#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    answer: u64,
}
// SAFETY: the anonymous struct of `BPF_OBJ_GET_INFO_BY_FD`, 16 bytes.
unsafe impl Attribute for Info {}

/// The beginning of `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkInfo {
    kind: u32,
    id: u32,
    /// Id of the program under the link.
    pub(crate) program: u32,
    padding: u32,
    target: [u32; 2],
}

impl LinkInfo {
    /// For a link to a network namespace: the namespace's inode, or 0 if it is gone.
    pub(crate) fn namespace(&self) -> u64 {
        let [inode, _attach_type] = self.target;
        inode.into()
    }

    /// For a link to a cgroup: the cgroup's id, which is its directory's inode.
    pub(crate) fn cgroup(&self) -> u64 {
        let bytes = self.target.map(u32::to_ne_bytes);
        bytes.as_flattened().try_into().map_or(0, u64::from_ne_bytes)
    }
}

/// Returns what a link is attached to, and with which program.
pub(crate) fn info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let length = u32::try_from(size_of::<LinkInfo>()).unwrap_or_default();
    bpf(GET_INFO, &mut Info { fd: raw(link), length, answer: address(&raw mut info) })?;
    Ok(info)
}
