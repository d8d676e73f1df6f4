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

/// A listener on `address`. An IPv6 one takes no IPv4 connections. What it accepts has `TCP_NODELAY`,
/// which the kernel copies from a listener.
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

/// A TCP socket that is not bound nor connected, with `TCP_NODELAY`.
pub fn tcp_socket(ipv6: bool) -> io::Result<Socket> {
    let family = if ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(family, kind, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket)
}

/// Binds a socket that will connect to a source address. The port is chosen at connect time, so that
/// one port serves connections to many destinations (`IP_BIND_ADDRESS_NO_PORT`, Linux 4.2;
/// it serves both families).
pub fn bind_address(socket: &Socket, address: IpAddr) -> io::Result<()> {
    option::set_int(socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
    socket.bind(&SocketAddr::new(address, 0).into())
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

/// Turns on keep-alive: the first probe after `idle` without traffic, then one every `interval`, and
/// the connection is dead after `probes` of them without an answer.
pub fn set_keepalive(
    socket: impl AsFd,
    idle: Duration,
    interval: Duration,
    probes: u32,
) -> io::Result<()> {
    let settings = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(probes);
    SockRef::from(&socket).set_tcp_keepalive(&settings)
}

#[cfg(test)]
mod tests;
