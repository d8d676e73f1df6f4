//! Time limits on a piece of work. Exceeding one is an I/O error like any other.

use std::{future::Future, io, time::Duration};

/// Returns the outcome of `work`, or `TimedOut` if it takes longer than `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(outcome) => outcome,
        Err(elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)),
    }
}
