//! Socket options that none of our dependencies wraps.
#![expect(unsafe_code, reason = "getsockopt and setsockopt take pointers")]

use std::{
    ffi::c_int,
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Reads an option that is eight bytes long.
pub(crate) fn get_u64(socket: impl AsFd, level: c_int, name: c_int) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = size_of_length::<u64>()?;
    // SAFETY: the kernel writes at most `length` bytes, the size of `value`, and both outlive the
    // call; whoever lent us the descriptor keeps it open meanwhile.
    let status = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if status == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Sets an option that is a C `int`.
pub(crate) fn set_int(
    socket: impl AsFd,
    level: c_int,
    name: c_int,
    value: c_int,
) -> io::Result<()> {
    let length = size_of_length::<c_int>()?;
    // SAFETY: the kernel reads `length` bytes, the size of `value`, which outlives the call; whoever
    // lent us the descriptor keeps it open meanwhile.
    let status = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), length)
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn size_of_length<T>() -> io::Result<libc::socklen_t> {
    size_of::<T>().try_into().map_err(io::Error::other)
}
