//! The agent's own sockets: marking them, and asking where a captured one was going.

use std::{net::SocketAddr, os::fd::AsFd};

use crate::Error;

/// Marks the agent's sockets and reads captured ones; cheap to clone, one system call per use.
#[derive(Clone, Debug)]
pub struct SocketTable;

impl SocketTable {
    /// Marks a listener; the sockets it accepts are born marked.
    pub fn mark_listener(&self, _listener: impl AsFd) -> Result<(), Error> {
        Err(Error::NoBytecode)
    }

    /// Marks a socket that will connect to another node; before it connects.
    pub fn mark_upstream(&self, _socket: impl AsFd) -> Result<(), Error> {
        Err(Error::NoBytecode)
    }

    /// Marks a socket that will connect to an application, which will see `client` as its peer;
    /// before it connects.
    pub fn mark_delivery(&self, _socket: impl AsFd, _client: SocketAddr) -> Result<(), Error> {
        Err(Error::NoBytecode)
    }

    /// Where the application behind an accepted outbound connection wanted to go; `None` if the
    /// connection was not captured, and then it must be refused.
    pub fn original_destination(&self, _accepted: impl AsFd) -> Result<Option<SocketAddr>, Error> {
        Err(Error::NoBytecode)
    }
}
