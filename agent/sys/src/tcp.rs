//! TCP sockets, watched by the runtime of the worker that uses them.
//!
//! Tokio's own assume after a short read that nothing is left, and wait for more to arrive. But a read also ends before
//! an urgent byte (`MSG_OOB`), and what has arrived behind it would stay unread. These ask the kernel to say so when
//! there are urgent bytes (`EPOLLPRI`). To read once more after every short read costs 5 % of the CPU of small
//! requests.

#![expect(
    unsafe_code,
    reason = "tokio asks for a promise that a descriptor stays open and the same"
)]

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::net::{SocketFlags, acceptfrom_with};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

use crate::socket::Socket;

/// An open connection. Reads and writes as tokio's own does.
#[derive(Debug)]
pub struct TcpStream(AsyncFd<std::net::TcpStream>);

/// A listener.
#[derive(Debug)]
pub struct TcpListener(AsyncFd<std::net::TcpListener>);

// === impl TcpStream ===

impl TcpStream {
    /// Watches a non-blocking socket.
    pub fn from_std(stream: std::net::TcpStream) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        watch(stream, interest).map(Self)
    }

    /// Returns the socket, which is not watched any more.
    pub fn into_std(self) -> std::net::TcpStream {
        self.0.into_inner()
    }

    /// Connects a non-blocking socket.
    pub async fn connect(socket: Socket, destination: SocketAddr) -> io::Result<Self> {
        start_connecting(&socket, destination)?;
        let stream = Self::from_std(socket.into())?;
        stream.settled().await?;
        Ok(stream)
    }

    /// Waits until the connection that the socket was told to make is open.
    pub async fn settled(&self) -> io::Result<()> {
        self.0.writable().await?.retain_ready();
        self.0.get_ref().take_error()?.map_or(Ok(()), Err)
    }

    /// Returns the address that the connection has on this side.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().local_addr()
    }

    /// Reads what has arrived into `room`: at least a byte, unless the other end has ended.
    pub fn poll_receive(&self, cx: &mut Context<'_>, room: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            match self.0.get_ref().read(room) {
                Ok(read) => {
                    if 0 < read && read < room.len() && !self.has_had_urgent_bytes() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(read));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Whether the kernel has ever said that there are urgent bytes. If they arrive after it was last asked for news,
    /// the news to come say that there is something to read, too.
    fn has_had_urgent_bytes(&self) -> bool {
        self.0.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match self.0.get_ref().write(bytes) {
                Ok(written) => {
                    if 0 < written && written < bytes.len() {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(written));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Writes as much as the socket takes at once.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.0.get_ref().write(bytes)
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(self.poll_receive(cx, buffer.initialize_unfilled()))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.get_ref().shutdown(Shutdown::Write))
    }
}

impl AsFd for TcpStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

// === impl TcpListener ===

impl TcpListener {
    /// Watches a non-blocking listener.
    pub fn from_std(listener: std::net::TcpListener) -> io::Result<Self> {
        watch(listener, Interest::READABLE).map(Self)
    }

    /// Waits for a connection.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.async_io(Interest::READABLE, |_| self.try_accept()).await
    }

    /// Takes a connection that waits in the backlog.
    ///
    /// # Errors
    ///
    /// `WouldBlock` if none does.
    pub fn try_accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, peer) = acceptfrom_with(&self.0, flags)?;
        let peer = peer.ok_or(ErrorKind::InvalidData)?.try_into()?;
        Ok((TcpStream::from_std(socket.into())?, peer))
    }
}

/// Watches a socket of std's types.
fn watch<T: AsRawFd>(socket: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: called for std's own types only, which have one descriptor and keep it open until they are dropped.
    Ok(unsafe { AsyncFd::register_with_interest(socket, interest) }?)
}

/// Tells a non-blocking socket to connect. The connection may be open only later.
pub fn start_connecting(socket: &Socket, destination: SocketAddr) -> io::Result<()> {
    match socket.connect(&destination.into()) {
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests;
