//! The last step of an inbound connection: from the agent to the application, over the pod's loopback.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    ops::RangeInclusive,
    os::fd::AsFd,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_kernel::SocketTable;
use sluice_sys::{
    Netns, nomad,
    socket::{self, Socket},
};

use crate::deadline::within;

/// How long the application may take to accept, when its backlog is full.
const DELIVER_TIME: Duration = Duration::from_secs(10);

/// How many ports are tried for a delivery over IPv6 before the choice is the kernel's.
const PORT_TRIES: usize = 16;

/// Counts the ports that were tried, so that each has its turn. Of its own: a counter that also spreads connections
/// over endpoints would give all of them to one, where both ends are of this agent.
static TURN: AtomicUsize = AtomicUsize::new(0);

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
    let connecting = |source| connect(sockets, netns, client, local, source);
    let socket = match local {
        SocketAddr::V4(_) => connecting(Source::Address(DELIVERY_SOURCE.into()))?,
        SocketAddr::V6(_) => {
            let ports = netns.ports();
            let mut sources = (0..PORT_TRIES)
                .filter_map(|_| source(local, ports, TURN.fetch_add(1, Ordering::Relaxed)));
            // The first that can be had, or cannot for another reason than the port.
            let chosen = sources.find_map(|source| match connecting(Source::Chosen(source)) {
                Err(error) if is_taken(&error) => None,
                outcome => Some(outcome),
            });
            chosen.unwrap_or_else(|| connecting(Source::Any))?
        }
    };
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

/// Where a delivery comes from, below the socket API.
#[derive(Clone, Copy)]
enum Source {
    Any,
    /// The port is left to the kernel.
    Address(IpAddr),
    Chosen(SocketAddr),
}

/// A socket on its way to the application.
fn connect(
    sockets: &SocketTable,
    netns: &Netns,
    client: SocketAddr,
    local: SocketAddr,
    source: Source,
) -> io::Result<Socket> {
    nomad::enter(netns).map_err(io::Error::other)?;
    let socket = socket::tcp_socket(local.is_ipv6())?;
    sockets.mark_delivery(socket.as_fd(), client).map_err(io::Error::other)?;
    socket::set_reset_on_close(&socket)?;
    match source {
        Source::Any => {}
        Source::Address(address) => socket::bind_address(&socket, address)?,
        Source::Chosen(source) => socket::bind_anew(&socket, source)?,
    }
    match socket.connect(&local.into()) {
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        other => other?,
    }
    Ok(socket)
}

/// Over IPv6 a delivery comes from the address that it goes to, since the kernel sends no reset from there to
/// `::1`, and from a port of our choice, since between such addresses it would not itself use one again that is
/// in `TIME_WAIT`. `None` for the port that it goes to, from which it would reach itself.
fn source(local: SocketAddr, ports: &RangeInclusive<u16>, turn: usize) -> Option<SocketAddr> {
    let count = ports.len();
    let port = ports.clone().nth(turn.checked_rem(count)?)?;
    (port != local.port()).then(|| SocketAddr::new(local.ip(), port))
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable)
}
