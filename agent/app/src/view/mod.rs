//! The operator's view: what the agent knows, asked over its Unix socket.
//!
//! HTTP/1.1 with JSON, so that `curl --unix-socket` works where no `sluice` is at hand. The same
//! types are written by the agent and read by the commands.

pub(crate) mod certs;
pub(crate) mod client;
pub(crate) mod command;
pub(crate) mod model;
pub(crate) mod server;
pub(crate) mod table;
