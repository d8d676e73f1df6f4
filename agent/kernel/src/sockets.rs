//! Marks the agent's own sockets, and tells where a captured one was going.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use sluice_abi::{AgentSocket, Endpoint, EndpointKind, map};

use crate::{Error, syscall};

/// Marks the agent's sockets and reads captured ones.
///
/// Made for the connection path: cheap to clone, and every call is a single system call that takes
/// one to two microseconds and allocates nothing.
#[derive(Clone, Debug)]
pub struct SocketTable {
    maps: Arc<SocketMaps>,
}

#[derive(Debug)]
struct SocketMaps {
    originals: OwnedFd,
    marks: OwnedFd,
}

impl SocketTable {
    pub(crate) fn new(originals: OwnedFd, marks: OwnedFd) -> Self {
        Self { maps: Arc::new(SocketMaps { originals, marks }) }
    }

    /// Marks a listener; the sockets it accepts are born marked.
    pub fn mark_listener(&self, listener: impl AsFd) -> Result<(), Error> {
        self.mark(listener.as_fd(), &AgentSocket::BYPASS)
    }

    /// Marks a socket that will connect to another node. Call it before connecting.
    pub fn mark_upstream(&self, socket: impl AsFd) -> Result<(), Error> {
        self.mark(socket.as_fd(), &AgentSocket::BYPASS)
    }

    /// Marks a socket that will connect to an application, which will see `client` as its peer.
    /// Call it before connecting. An IPv6 client cannot be shown to an IPv4 application, which then
    /// sees the address that the socket connects from.
    pub fn mark_delivery(&self, socket: impl AsFd, client: SocketAddr) -> Result<(), Error> {
        self.mark(socket.as_fd(), &AgentSocket::delivery(client))
    }

    /// Returns where the application behind an accepted outbound connection wanted to go. `None`
    /// means that the connection was not captured and must be refused.
    pub fn original_destination(&self, accepted: impl AsFd) -> Result<Option<SocketAddr>, Error> {
        let key = accepted.as_fd().as_raw_fd();
        let endpoint: Option<Endpoint> = syscall::map::lookup(self.maps.originals.as_fd(), &key)
            .map_err(Error::kernel("read a socket's", map::SK_ORIG))?;
        let original = endpoint.filter(|endpoint| endpoint.kind() == Some(EndpointKind::Original));
        Ok(original.map(|endpoint| endpoint.socket_address()))
    }

    fn mark(&self, socket: BorrowedFd<'_>, mark: &AgentSocket) -> Result<(), Error> {
        syscall::map::update(self.maps.marks.as_fd(), &socket.as_raw_fd(), mark)
            .map_err(Error::kernel("set a socket's", map::AGENT_SK))
    }
}
