//! Reads what applications send.

use std::{
    io::{self, ErrorKind},
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;

/// Reads into `room` what is there, at least a byte unless the other end has ended.
///
/// tokio's own takes a short read for the last one there is and waits for more to arrive. But a read also ends before
/// an urgent byte (`MSG_OOB`), and what has arrived behind it would stay where it is. To ask once more costs no
/// more than to have the kernel say what is left (`TCP_INQ`): measured.
pub(crate) fn poll_receive(
    cx: &mut Context<'_>,
    application: &TcpStream,
    room: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(application.poll_read_ready(cx))?;
        match application.try_read(room) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            read => return Poll::Ready(read),
        }
    }
}
