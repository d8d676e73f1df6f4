//! Lists and destroys the TCP connections of a namespace: `sock_diag(7)`.

use std::{collections::HashSet, fs, io, net::SocketAddr};

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

/// A TCP connection in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The end in the namespace. An IPv6 socket that speaks IPv4 shows IPv4 addresses.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// The socket's inode number; 0 if no process holds the socket (not accepted yet, or closed).
    pub inode: u32,
    /// The kernel's name for the socket, never used twice while the machine runs (`SO_COOKIE`).
    pub cookie: u64,
}

/// The live TCP connections of a namespace that matched when they were listed.
pub struct Connections {
    channel: Channel,
    found: Vec<InetResponseHeader>,
}

// === impl Connections ===

impl Connections {
    /// Lists the live TCP connections of `netns` that match.
    pub fn list(netns: &Netns, mut matches: impl FnMut(&Connection) -> bool) -> Result<Self> {
        // `FIN_WAIT2` is left out: asking for it also lists time-wait entries, which have no socket.
        let states = StateFlags::ESTABLISHED
            | StateFlags::SYN_SENT
            | StateFlags::FIN_WAIT1
            | StateFlags::CLOSE_WAIT;
        let mut channel = Channel::inside(netns, NETLINK_SOCK_DIAG)?;
        let mut found = sockets(&mut channel, &states)?;
        found.retain(|connection| matches(&shown(connection)));
        Ok(Self { channel, found })
    }

    /// Returns them.
    pub fn to_vec(&self) -> Vec<Connection> {
        self.found.iter().map(shown).collect()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Forgets those that do not match.
    pub fn retain(&mut self, mut matches: impl FnMut(&Connection) -> bool) {
        self.found.retain(|connection| matches(&shown(connection)));
    }

    /// Destroys them, and returns how many still were there. The application reads `ECONNABORTED`, the other end
    /// a reset (Linux 4.5).
    ///
    /// # Errors
    ///
    /// [`Error::DestroyUnsupported`] when the kernel was built without it and there is something to
    /// destroy.
    pub fn destroy(mut self) -> Result<usize> {
        let mut destroyed = 0;
        for connection in self.found {
            match self.channel.ask(&destruction(connection)) {
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
}

/// Returns whether whoever listens on `port` of `netns` does so on one device each (`SO_BINDTODEVICE`), so that none of
/// them is reached over the loopback device.
pub fn listens_on_device(netns: &Netns, port: u16) -> Result<bool> {
    let mut channel = Channel::inside(netns, NETLINK_SOCK_DIAG)?;
    let listeners = sockets(&mut channel, &StateFlags::LISTEN)?;
    let mut devices =
        listeners.iter().map(|listener| &listener.socket_id).filter(|id| id.source_port == port);
    Ok(devices.next().is_some_and(|first| first.interface_id != 0)
        && devices.all(|other| other.interface_id != 0))
}

/// Inodes of the sockets that this process holds, to tell them from the applications' own. Read them after
/// connections were listed: what the process opens between the two is then known as its own.
pub fn own_sockets() -> io::Result<HashSet<u32>> {
    let mut inodes = HashSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // A descriptor may be closed between being listed and being read.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let number =
            target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'));
        inodes.extend(number.and_then(|number| number.parse::<u32>().ok()));
    }
    Ok(inodes)
}

fn sockets(channel: &mut Channel, states: &StateFlags) -> Result<Vec<InetResponseHeader>> {
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        for answer in channel.dump("list TCP sockets", &listing(family, states.clone()))? {
            found.push(InetResponseHeader::parse(&answer.body).map_err(|error| {
                Error::Netlink { what: "read a TCP socket", source: io::Error::other(error) }
            })?);
        }
    }
    Ok(found)
}

fn shown(connection: &InetResponseHeader) -> Connection {
    let id = &connection.socket_id;
    Connection {
        local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        inode: connection.inode,
        cookie: u64::from_ne_bytes(id.cookie),
    }
}

fn listing(family: u8, states: StateFlags) -> Message {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
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
