//! Time limits on a piece of work, whose passing is an I/O error like any other.

use std::{future::Future, io, time::Duration};

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
