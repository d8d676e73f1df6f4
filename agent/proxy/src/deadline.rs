//! Time limits: on a piece of work, whose passing is an I/O error like any other, and on a silent peer.

use std::{future::Future, io, os::fd::AsFd, time::Duration};

use sluice_sys::socket;

/// Silence after which a peer on the network is asked whether it is still there.
const KEEPALIVE_IDLE: Duration = Duration::from_mins(1);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Lets the kernel find out that a peer on the network has vanished without a word.
pub(crate) fn watch_peer(stream: impl AsFd) {
    // Without it the connection works as well; it only outlives its peer.
    drop(socket::set_keepalive(stream, KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES));
}

/// The outcome of `work`, or `TimedOut` when it takes longer than `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)),
    }
}
