//! The TCP sockets of a namespace, and the end of some: `sock_diag(7)`.

use std::{io, net::SocketAddr};

use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DESTROY, SOCK_DIAG_BY_FAMILY,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::{
    Error, Netns, Result,
    netlink::{Channel, Message},
};

/// Counts the live TCP connections of `netns` of which `matches(local, remote)` holds.
pub fn count_tcp(
    netns: &Netns,
    matches: impl FnMut(SocketAddr, SocketAddr) -> bool,
) -> Result<usize> {
    let mut channel = Channel::inside(netns, NETLINK_SOCK_DIAG)?;
    Ok(connections(&mut channel, matches)?.len())
}

/// Destroys the live TCP connections of `netns` of which `matches(local, remote)` holds, and says how
/// many they were. The application reads `ECONNABORTED`, the other end a reset (Linux 4.5).
///
/// # Errors
///
/// [`Error::DestroyUnsupported`] when the kernel was built without it and there is something to
/// destroy.
pub fn destroy_tcp(
    netns: &Netns,
    matches: impl FnMut(SocketAddr, SocketAddr) -> bool,
) -> Result<usize> {
    let mut channel = Channel::inside(netns, NETLINK_SOCK_DIAG)?;
    let mut destroyed = 0;
    for connection in connections(&mut channel, matches)? {
        match channel.ask(&destruction(connection)) {
            Ok(_) => destroyed += 1,
            // It ended by itself meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return Err(Error::DestroyUnsupported);
            }
            Err(source) => return Err(Error::Netlink { what: "destroy a connection", source }),
        }
    }
    Ok(destroyed)
}

fn connections(
    channel: &mut Channel,
    mut matches: impl FnMut(SocketAddr, SocketAddr) -> bool,
) -> Result<Vec<InetResponseHeader>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for answer in channel.dump("list TCP connections", &listing(family))? {
            let connection = InetResponseHeader::parse(&answer.body).map_err(|error| {
                Error::Netlink { what: "read a TCP connection", source: io::Error::other(error) }
            })?;
            let (local, remote) = ends(&connection.socket_id);
            if matches(local, remote) {
                found.push(connection);
            }
        }
    }
    Ok(found)
}

/// An IPv6 socket that speaks IPv4 shows the addresses that it really uses.
fn ends(id: &SocketId) -> (SocketAddr, SocketAddr) {
    (
        SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
    )
}

/// `FIN_WAIT2` is left out: asking for it also lists time-wait entries, which have no socket.
fn listing(family: u8) -> Message {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    let states = StateFlags::ESTABLISHED
        | StateFlags::SYN_SENT
        | StateFlags::FIN_WAIT1
        | StateFlags::CLOSE_WAIT;
    encode(SOCK_DIAG_BY_FAMILY, &request(family, states, socket_id))
}

fn destruction(connection: InetResponseHeader) -> Message {
    let states = StateFlags::empty();
    encode(SOCK_DESTROY, &request(connection.family, states, connection.socket_id))
}

fn request(family: u8, states: StateFlags, socket_id: SocketId) -> InetRequest {
    let extensions = ExtensionFlags::empty();
    InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id }
}

fn encode(kind: u16, request: &InetRequest) -> Message {
    let mut body = vec![0; request.buffer_len()];
    request.emit(&mut body);
    Message { kind, body }
}

#[cfg(test)]
mod tests;
