//! The sockets that the proxy needs, all non-blocking and close-on-exec.
//!
//! A socket belongs to the namespace of the thread that makes it: see [`crate::nomad`]. Errors are the
//! kernel's own, because the proxy tells the application just these.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::AsFd,
    time::Duration,
};

pub use socket2::Socket;
use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};

use crate::option;

/// Silence after which the kernel asks a peer whether it is still there, the time between two such
/// questions, and how many may stay without an answer.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// A listener on `address`. An IPv6 one takes no IPv4 connections. What it accepts has the options of
/// [`tcp_socket`], which the kernel copies from a listener.
pub fn listen(address: SocketAddr, backlog: i32) -> io::Result<TcpListener> {
    let socket = tcp_socket(address.is_ipv6())?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    // What is steered here is accepted with the application's port, which it then shares: without this,
    // an application that restarts could not bind its port while connections last. Set after binding,
    // so that the listener's own port stays its own.
    socket.set_reuse_address(true)?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// A TCP socket that is not bound nor connected, with `TCP_NODELAY`, `SO_OOBINLINE` and `SO_KEEPALIVE`. An application
/// on loopback is asked as well as a peer on the network: a reset that overtakes data is lost when the
/// kernel may not challenge it just then (RFC 5961, section 7). An urgent byte stays in its place among the others,
/// as what is on a connection's way may have it (RFC 6093, section 3.4); it would be lost otherwise.
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

/// Binds a socket that will connect to a source address. The port is chosen at connect time, so that
/// one port serves connections to many destinations (`IP_BIND_ADDRESS_NO_PORT`, Linux 4.2;
/// it serves both families).
pub fn bind_address(socket: &Socket, address: IpAddr) -> io::Result<()> {
    option::set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::new(address, 0).into())
}

/// Binds a socket that will connect to a source address and port from which others may have connected before,
/// be it to the same destination: a connection in `TIME_WAIT` makes room (with TCP timestamps, which Linux
/// uses by default), one that is open does not.
///
/// # Errors
///
/// `AddrInUse` if somebody listens there. That a connection from there is open shows when this one connects,
/// by `AddrNotAvailable`.
pub fn bind_anew(socket: &Socket, source: SocketAddr) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())
}

/// The CPU on which the kernel last handled a packet of this socket (`SO_INCOMING_CPU`).
pub fn incoming_cpu(socket: impl AsFd) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_incoming_cpu(socket)?)
}

/// Makes closing the socket send a reset and forget unsent data (`SO_LINGER` of zero). What a listener accepts
/// from then on has it too, for the kernel copies it.
pub fn set_reset_on_close(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_linger(Some(Duration::ZERO))
}

/// Makes closing the socket send what is unsent and then the end, as the kernel does by default; takes
/// [`set_reset_on_close`] back.
pub fn set_end_on_close(socket: impl AsFd) -> io::Result<()> {
    SockRef::from(&socket).set_linger(None)
}

/// Ties the socket to a device by name (`SO_BINDTODEVICE`), such as `lo`.
pub fn bind_to_device(socket: impl AsFd, device: &str) -> io::Result<()> {
    SockRef::from(&socket).bind_device(Some(device.as_bytes()))
}

/// The pending error of the socket (`SO_ERROR`), which is cleared by asking.
pub fn take_error(socket: impl AsFd) -> io::Result<Option<io::Error>> {
    SockRef::from(&socket).take_error()
}

#[cfg(test)]
mod tests;
