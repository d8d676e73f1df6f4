//! How the sockets of applications are closed: by a reset, until both directions have been carried to their ends.
//!
//! The kernel closes what belongs to a process that dies. It would end the stream in order, and an application that
//! reads to the end would take half an answer for the whole one. So whatever is in flight has the option that makes
//! closing a reset, and loses it when all is said.

use std::os::fd::AsFd;

use sluice_sys::socket;

/// From now on closing the socket is a reset.
pub(crate) fn by_reset(socket: impl AsFd) {
    // It closes either way.
    drop(socket::set_reset_on_close(socket));
}

/// All is said: the socket closes as applications close theirs.
pub(crate) fn in_order(socket: impl AsFd) {
    // Fails only for a socket that is none any more.
    drop(socket::set_end_on_close(socket));
}
