//! Connecting and sending through `io_uring`, which makes neither system call.
#![expect(
    unsafe_code,
    reason = "what a ring is given must outlive the request, which no type checks"
)]

use std::{io, os::fd::AsRawFd, time::Duration};

use io_uring::{
    IoUring, opcode,
    squeue::Entry,
    types::{Fd, SubmitArgs, Timespec},
};
use socket2::{SockAddr, Socket};

/// Connects `socket` and sends `bytes`, each within `patience`.
pub(super) fn connect_and_send(
    socket: &Socket,
    target: &SockAddr,
    bytes: &[u8],
    patience: Duration,
) -> io::Result<()> {
    let fd = Fd(socket.as_raw_fd());
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut ring = IoUring::new(2)?;
    let connect = opcode::Connect::new(fd, target.as_ptr().cast(), target.len()).build();
    let send = opcode::Send::new(fd, bytes.as_ptr(), length).build();
    // SAFETY: `target` is borrowed until this function returns, and the ring does not outlive it.
    unsafe { run(&mut ring, &connect, patience) }?;
    // SAFETY: `bytes`, too, is borrowed until this function returns.
    unsafe { run(&mut ring, &send, patience) }
}

/// Runs one request and waits for its result, for up to `patience`.
///
/// # Safety
///
/// What `entry` points to must live as long as `ring`.
unsafe fn run(ring: &mut IoUring, entry: &Entry, patience: Duration) -> io::Result<()> {
    // SAFETY: the caller keeps what `entry` points to for longer than the ring, whose end cancels the request.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    let limit = Timespec::from(patience);
    ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit))?;
    let done = ring.completion().next().ok_or(io::ErrorKind::TimedOut)?;
    match done.result() {
        0.. => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}
