//! The parts of `bpf(2)` that aya leaves to us: links that are updated and pinned, maps read by
//! key.
//!
//! Each command has its own argument structure instead of the kernel's one union; the kernel takes
//! any prefix of the union and reads the rest as zero.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    time::Duration,
};

pub(crate) mod link;
pub(crate) mod map;
pub(crate) mod program;

const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;

/// Marks the argument structures: `repr(C)`, no padding, any bit pattern valid.
///
/// # Safety
///
/// An implementor's layout must be a prefix of the kernel's `union bpf_attr` for its command.
unsafe trait Attribute {}

fn bpf<T: Attribute>(command: u32, attribute: &mut T) -> io::Result<i64> {
    // SAFETY: `Attribute` vouches for the layout; address and size are those of one live value.
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
    // SAFETY: the command has just created this descriptor for its caller, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

/// The time that `bpf_ktime_get_boot_ns` shows to kernel programs.
pub(crate) fn boot_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a whole `timespec`; this clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}

/// Pins a map, program or link.
pub(crate) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    bpf(OBJ_PIN, &mut Object { path: address(path.as_ptr()), fd: raw(fd), flags: 0 }).map(drop)
}

/// Opens what is pinned at `path`. Returns `None` if nothing is.
pub(crate) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = path_string(path)?;
    match bpf(OBJ_GET, &mut Object { path: address(path.as_ptr()), fd: 0, flags: 0 }) {
        Ok(fd) => owned(fd).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
