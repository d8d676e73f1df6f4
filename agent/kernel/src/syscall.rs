//! `bpf(2)`, as far as aya leaves it to us: links that are updated and pinned, maps read by key.
//!
//! Each command has its own argument structure instead of the kernel's one union; the kernel takes
//! any prefix of the union and reads the rest as zero.

use std::{
    ffi::CString,
    io,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const PROG_LOAD: u32 = 5;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

/// `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AttachType(u32);

impl AttachType {
    pub(crate) const CGROUP_SOCK_OPS: Self = Self(3);
    pub(crate) const CGROUP_INET4_CONNECT: Self = Self(10);
    pub(crate) const CGROUP_INET6_CONNECT: Self = Self(11);
    pub(crate) const CGROUP_INET4_GETPEERNAME: Self = Self(29);
    pub(crate) const CGROUP_INET6_GETPEERNAME: Self = Self(30);
    pub(crate) const SK_LOOKUP: Self = Self(36);
    pub(crate) const TCX_INGRESS: Self = Self(46);
}

/// `BPF_F_BEFORE`: with no other program named, in front of all others.
pub(crate) const BEFORE: u32 = 1 << 3;
/// `BPF_F_QUERY_EFFECTIVE`: what runs, inherited programs included.
pub(crate) const EFFECTIVE: u32 = 1;

/// Marks the argument structures: `repr(C)`, no padding, any bit pattern valid.
///
/// # Safety
///
/// An implementor's layout must be a prefix of the kernel's `union bpf_attr` for its command.
unsafe trait Attribute {}

fn bpf<T: Attribute>(command: u32, attribute: &mut T) -> io::Result<i64> {
    // SAFETY: `Attribute` vouches for the layout, and its address and size are those of one live value.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attribute), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

fn address<T>(value: *const T) -> u64 {
    value.expose_provenance() as u64
}

fn owned(result: i64) -> io::Result<OwnedFd> {
    let fd =
        RawFd::try_from(result).map_err(|_overflow| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the command that returned it creates a descriptor for its caller, who is nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
// SAFETY: the anonymous struct of `BPF_MAP_*_ELEM`, 32 bytes.
unsafe impl Attribute for Element {}

/// The value at `key`; `None` if there is none. The map must have keys and values of these types.
pub(crate) fn map_lookup<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    key: &K,
) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let found = map_lookup_into(map, key, value.as_mut_ptr())?;
    // SAFETY: the kernel has written the whole value, and a `Pod` may have any bits.
    Ok(found.then(|| unsafe { value.assume_init() }))
}

/// The value of every CPU at `key`; values are multiples of 8 bytes, as the kernel pads them to.
pub(crate) fn map_lookup_per_cpu<K: aya::Pod, V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    key: &K,
    cpus: usize,
) -> io::Result<Vec<V>> {
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let mut values = vec![V::default(); cpus];
    if map_lookup_into(map, key, values.as_mut_ptr())? { Ok(values) } else { Ok(Vec::new()) }
}

fn map_lookup_into<K: aya::Pod, V>(
    map: BorrowedFd<'_>,
    key: &K,
    value: *mut V,
) -> io::Result<bool> {
    let mut element =
        Element { map: raw(map), padding: 0, key: address(key), value: address(value), flags: 0 };
    match bpf(MAP_LOOKUP_ELEM, &mut element) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sets the value at `key`, whether or not there is one.
pub(crate) fn map_update<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<()> {
    map_update_from(map, key, value)
}

/// Sets the value of every CPU at `key`.
pub(crate) fn map_update_per_cpu<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    values: &[V],
) -> io::Result<()> {
    map_update_from(map, key, values.as_ptr())
}

fn map_update_from<K: aya::Pod, V>(
    map: BorrowedFd<'_>,
    key: &K,
    value: *const V,
) -> io::Result<()> {
    let mut element =
        Element { map: raw(map), padding: 0, key: address(key), value: address(value), flags: 0 };
    bpf(MAP_UPDATE_ELEM, &mut element).map(drop)
}

/// Removes the entry at `key`; whether there was one.
pub(crate) fn map_delete<K: aya::Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<bool> {
    let mut element = Element { map: raw(map), padding: 0, key: address(key), value: 0, flags: 0 };
    match bpf(MAP_DELETE_ELEM, &mut element) {
        Ok(_) => Ok(true),
        // A map of sockets says EINVAL where others say ENOENT.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The key after `key`, or the first one; `None` at the end.
pub(crate) fn map_next_key<K: aya::Pod>(
    map: BorrowedFd<'_>,
    key: Option<&K>,
) -> io::Result<Option<K>> {
    let mut next = MaybeUninit::<K>::uninit();
    let mut element = Element {
        map: raw(map),
        padding: 0,
        key: key.map_or(0, |key| address(key)),
        value: address(next.as_mut_ptr()),
        flags: 0,
    };
    match bpf(MAP_GET_NEXT_KEY, &mut element) {
        // SAFETY: the kernel has written the whole key, and a `Pod` may have any bits.
        Ok(_) => Ok(Some(unsafe { next.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}
// SAFETY: the anonymous struct of `BPF_OBJ_*`, 16 bytes.
unsafe impl Attribute for Object {}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_nul| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Pins a map, program or link.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    bpf(OBJ_PIN, &mut Object { path: address(path.as_ptr()), fd: raw(fd), flags: 0 }).map(drop)
}

/// Opens what is pinned at `path`; `None` if nothing is.
pub(crate) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = path_string(path)?;
    match bpf(OBJ_GET, &mut Object { path: address(path.as_ptr()), fd: 0, flags: 0 }) {
        Ok(fd) => owned(fd).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// Of tcx: no other program to be before or after, any revision.
    relative: [u64; 2],
}
// SAFETY: the prefix of `BPF_LINK_CREATE` that all of our attach types share, and tcx's 16 bytes.
unsafe impl Attribute for Link {}

/// Attaches a program to a cgroup or network namespace.
pub(crate) fn link_to_fd(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    to: AttachType,
) -> io::Result<OwnedFd> {
    let target = raw(target);
    let mut link =
        Link { program: raw(program), target, attach_type: to.0, flags: 0, relative: [0; 2] };
    owned(bpf(LINK_CREATE, &mut link)?)
}

/// Attaches a program to an interface of the calling thread's network namespace, before all others.
pub(crate) fn link_to_interface(
    program: BorrowedFd<'_>,
    ifindex: u32,
    to: AttachType,
) -> io::Result<OwnedFd> {
    let program = raw(program);
    let mut link =
        Link { program, target: ifindex, attach_type: to.0, flags: BEFORE, relative: [0; 2] };
    owned(bpf(LINK_CREATE, &mut link)?)
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

/// Puts another program under a link, with no moment in which none is attached.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut update = Update { link: raw(link), program: raw(program), flags: 0, old_program: 0 };
    bpf(LINK_UPDATE, &mut update).map(drop)
}

#[repr(C)]
struct Detach {
    link: u32,
}
// SAFETY: the anonymous struct of `BPF_LINK_DETACH`, 4 bytes.
unsafe impl Attribute for Detach {}

/// Detaches a link now, whoever else holds it.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut Detach { link: raw(link) }).map(drop)
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
    /// Of `sk_lookup`: inode of the network namespace. Of tcx: index of the interface. Of both, 0
    /// when that is gone.
    pub(crate) target: u32,
    attach_type: u32,
}

/// What a link is attached to, and with which program.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let length = u32::try_from(size_of::<LinkInfo>()).unwrap_or_default();
    bpf(OBJ_GET_INFO_BY_FD, &mut Info { fd: raw(link), length, answer: address(&raw mut info) })?;
    Ok(info)
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
    /// Written by Linux 6.6 and later whatever size it is told, so it has to be there.
    revision: u64,
}
// SAFETY: the anonymous struct of `BPF_PROG_QUERY` as of Linux 6.6; older kernels take a longer one
// whose tail is zero, and none writes behind `revision`.
unsafe impl Attribute for Query {}

/// Programs per hook that are looked at; the kernel allows 64 per cgroup and interface.
const MAX_PROGRAMS: usize = 128;

/// Ids of the programs on a cgroup, or on the interface of this index.
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
    bpf(PROG_QUERY, &mut query)?;
    programs.truncate(usize::try_from(query.count).unwrap_or_default());
    Ok(programs)
}

/// Ids of the programs that are in effect on a cgroup.
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
    owned(bpf(PROG_LOAD, &mut load)?)
}
