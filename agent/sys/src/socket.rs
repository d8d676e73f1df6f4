//! The sockets that the proxy needs, all non-blocking and close-on-exec.
//!
//! A socket belongs to the namespace of the thread that makes it: see [`crate::nomad`]. Errors are the
//! kernel's own, because the proxy passes exactly these on to the application.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::AsFd,
    time::Duration,
};

pub use socket2::Socket;
use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};

use crate::option;

/// How long a peer may be silent before the kernel asks whether it is still there, the time between
/// two such questions, and how many may go unanswered.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Opens a listener on `address`. An IPv6 one takes no IPv4 connections. Accepted sockets have the
/// options of [`tcp_socket`], which the kernel copies from the listener.
pub fn listen(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = tcp_socket(address.is_ipv6())?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    // A connection that is steered here is accepted on the application's port and shares it. Without
    // this option, an application that restarts could not bind its port while such connections last. It
    // is set after binding, so that the listener's own port stays its own.
    socket.set_reuse_address(true)?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Makes an unbound TCP socket with `TCP_NODELAY`, `SO_OOBINLINE` and `SO_KEEPALIVE`. Keepalive matters for an
/// application on loopback too, not only for a peer on the network: a reset that overtakes data is lost if the kernel
/// may not send a challenge just then (RFC 5961, section 7). An urgent byte stays in its place among the others,
/// where middleboxes may put it anyway (RFC 6093, section 3.4); it would be lost otherwise.
pub fn tcp_socket(ipv6: bool) -> io::Result<Socket> {
    let family = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(family, kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(socket)
}

/// Binds a socket to a source address before it connects. The port is chosen at connect time, so one
/// port serves connections to many destinations (`IP_BIND_ADDRESS_NO_PORT`, Linux 4.2; it serves
/// both families).
pub fn bind_address(socket: &Socket, address: IpAddr) -> io::Result<()> {
    option::set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::new(address, 0).into())
}

/// Binds a socket, before it connects, to a source address and port that earlier connections may have used,
/// even to the same destination. A connection in `TIME_WAIT` gives way (with TCP timestamps, which Linux uses
/// by default); an open one does not.
///
/// # Errors
///
/// `AddrInUse` if a socket listens there. An open connection from there shows only when this socket
/// connects, by `AddrNotAvailable`.
pub fn bind_anew(socket: &Socket, source: SocketAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())
}

/// Makes closing the socket send a reset and discard unsent data (`SO_LINGER` of zero). Sockets that a
/// listener accepts from then on have it too, because the kernel copies it.
pub fn set_reset_on_close(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))
}

/// Makes closing the socket send unsent data and then the end, as the kernel does by default. Undoes
/// [`set_reset_on_close`].
pub fn set_end_on_close(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_linger(None)
}

/// Returns and clears the socket's pending error (`SO_ERROR`).
pub fn take_error(socket: impl AsFd) -> io::Result<Option<io::Error>> {
    SockRef::from(&socket).take_error()
}

#[cfg(test)]
mod tests;
