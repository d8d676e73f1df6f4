//! Reads what applications send.

use std::{
    io::{self, ErrorKind},
    task::{Context, Poll, ready},
};

use tokio::net::TcpStream;

/// Reads what has arrived into `room`: at least a byte, unless the other end has ended.
///
/// After a short read, tokio's own reading assumes that nothing is left and waits for more to arrive. But a read also
/// ends before an urgent byte (`MSG_OOB`), and what has arrived behind that would stay unread. Measured: to read once
/// more costs no more than to ask the kernel what is left (`TCP_INQ`).
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
