//! The last step of an inbound connection: from the agent to the application, over the pod's loopback.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_kernel::SocketTable;
use sluice_sys::{Netns, nomad, socket};

use crate::deadline::within;

/// How long the application may take to accept, when its backlog is full.
const DELIVER_TIME: Duration = Duration::from_secs(10);

/// Where deliveries over IPv4 come from, below the socket API. A loopback address, because only then does
/// the kernel use a port again that is in `TIME_WAIT` (`tcp_tw_reuse` is 2 by default), without which a port
/// of the application could take 470 connections a second; but not 127.0.0.1, which some applications
/// trust. The application sees the client's address.
const DELIVERY_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// Connects to the application on `local` inside the pod, which will see `client` as its peer. The
/// socket is of no runtime yet: it may be carried by another worker. Closed, it is reset: see [`crate::closing`].
pub(crate) async fn deliver(
    sockets: &SocketTable,
    netns: &Netns,
    client: SocketAddr,
    local: SocketAddr,
) -> io::Result<TcpStream> {
    nomad::enter(netns).map_err(io::Error::other)?;
    let socket = socket::tcp_socket(local.is_ipv6())?;
    sockets.mark_delivery(socket.as_fd(), client).map_err(io::Error::other)?;
    socket::set_reset_on_close(&socket)?;
    if local.is_ipv4() {
        socket::bind_address(&socket, DELIVERY_SOURCE.into())?;
    }
    match socket.connect(&local.into()) {
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        other => other?,
    }
    let is_settled = {
        let mut watched = [PollFd::new(&socket, PollFlags::OUT)];
        poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0
    };
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    if is_settled {
        return Ok(socket.into());
    }
    // Over loopback the handshake is over before `connect` returns, unless the backlog is full.
    let stream = tokio::net::TcpStream::from_std(socket.into())?;
    within(DELIVER_TIME, stream.writable()).await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => stream.into_std(),
    }
}
