//! The few system calls that no safe wrapper offers: packet sockets, odd socket options, and asking
//! the kernel which BPF programs are attached.
#![expect(
    unsafe_code,
    reason = "AF_PACKET addresses, arbitrary socket options and bpf(2) have no safe wrapper"
)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use libc::{c_int, c_long, socklen_t};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// `BPF_PROG_QUERY` of `enum bpf_cmd`.
const BPF_PROG_QUERY: c_int = 16;
/// More programs than one hook of this machine ever carries (`BPF_CGROUP_MAX_PROGS` is 64).
const MAX_PROGRAMS: usize = 256;

/// An attach point of `enum bpf_attach_type`, as far as the tests ask about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Hook {
    /// `BPF_CGROUP_SOCK_OPS`
    SockOps = 3,
    /// `BPF_CGROUP_INET4_CONNECT`
    Connect4 = 10,
    /// `BPF_CGROUP_INET6_CONNECT`
    Connect6 = 11,
    /// `BPF_CGROUP_INET4_GETPEERNAME`
    PeerName4 = 29,
    /// `BPF_CGROUP_INET6_GETPEERNAME`
    PeerName6 = 30,
    /// `BPF_CGROUP_INET4_GETSOCKNAME`
    OwnName4 = 31,
    /// `BPF_CGROUP_INET6_GETSOCKNAME`
    OwnName6 = 32,
    /// `BPF_SK_LOOKUP`, on a network namespace.
    SkLookup = 36,
    /// `BPF_TCX_INGRESS`, on a device of the calling thread's namespace.
    TcxIngress = 46,
}

impl Hook {
    /// Those that an agent has at the root of the cgroup hierarchy, for the whole node.
    pub const OF_NODE: [Self; 7] = [
        Self::SockOps,
        Self::Connect4,
        Self::Connect6,
        Self::PeerName4,
        Self::PeerName6,
        Self::OwnName4,
        Self::OwnName6,
    ];
}

/// Where a [`Hook`] is.
#[derive(Clone, Copy, Debug)]
pub enum Target<'a> {
    /// A cgroup directory or a network namespace.
    Fd(BorrowedFd<'a>),
    /// A device of the calling thread's network namespace.
    Interface(u32),
}

/// The head of `union bpf_attr` for `BPF_PROG_QUERY` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Gives the calling thread a new network namespace; other threads keep theirs.
pub fn enter_new_network_namespace() -> io::Result<()> {
    // SAFETY: NEWNET alone; the descriptor table stays shared, which is what the contract is about.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Sets a socket option from its raw bytes.
pub fn set_option(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
    value: &[u8],
) -> io::Result<()> {
    let length = length_of(value)?;
    // SAFETY: `value` lives through the call and the kernel reads `length` bytes of it, no more.
    check(unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length)
    })
}

/// Reads a socket option of at most `N` bytes.
pub fn get_option<const N: usize>(
    socket: BorrowedFd<'_>,
    level: c_int,
    name: c_int,
) -> io::Result<[u8; N]> {
    let mut value = [0; N];
    let mut length = length_of(&value)?;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `value`.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    Ok(value)
}

/// Binds a packet socket to one device: only its frames are received, and sent frames leave there.
pub fn bind_packet(socket: BorrowedFd<'_>, interface: u32) -> io::Result<()> {
    let family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    let every_protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?;
    // struct sockaddr_ll: family, protocol (network order), ifindex, then fields that bind ignores.
    let mut address = [0_u8; 20];
    let head = family.to_ne_bytes().into_iter().chain(every_protocol.to_be_bytes());
    for (slot, byte) in address.iter_mut().zip(head.chain(interface.to_ne_bytes())) {
        *slot = byte;
    }
    // SAFETY: `address` is a whole sockaddr_ll (20 bytes) that the kernel copies during the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), address.as_ptr().cast(), length_of(&address)?) })
}

/// Ids of the programs attached at `hook` of `target`; for a cgroup its own, not inherited ones.
pub fn attached_programs(target: Target<'_>, hook: Hook) -> io::Result<Vec<u32>> {
    let mut ids = vec![0_u32; MAX_PROGRAMS];
    let mut attr = QueryAttr {
        target: match target {
            Target::Fd(fd) => u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)?,
            Target::Interface(index) => index,
        },
        attach_type: hook as u32,
        prog_ids: u64::try_from(ids.as_mut_ptr().expose_provenance()).map_err(io::Error::other)?,
        prog_count: u32::try_from(MAX_PROGRAMS).map_err(io::Error::other)?,
        ..QueryAttr::default()
    };
    // SAFETY: `attr` has the size given, and `prog_ids` points to `prog_count` writable words.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size_of::<QueryAttr>())
    };
    if result != c_long::from(0_u8) {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(usize::try_from(attr.prog_count).map_err(io::Error::other)?);
    Ok(ids)
}

fn length_of(bytes: &[u8]) -> io::Result<socklen_t> {
    socklen_t::try_from(bytes.len()).map_err(io::Error::other)
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
