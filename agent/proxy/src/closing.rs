//! Closes the sockets of applications: by a reset, until both directions have been carried to their ends.
//!
//! The kernel closes the sockets of a process that dies. By default this ends the stream in order, and an application
//! that reads to the end would take half an answer for the whole one. So a socket in flight has the option that makes
//! closing it a reset, and loses it when both directions have ended.

use std::os::fd::AsFd;

use sluice_sys::socket;

/// Makes closing the socket send a reset from now on.
pub(crate) fn by_reset(socket: impl AsFd) {
    // If this fails, the socket closes all the same.
    drop(socket::set_reset_on_close(socket));
}

/// Makes the socket close as applications close theirs. To be called when both directions have ended.
pub(crate) fn in_order(socket: impl AsFd) {
    // Fails only for a descriptor that is no longer a socket.
    drop(socket::set_end_on_close(socket));
}
