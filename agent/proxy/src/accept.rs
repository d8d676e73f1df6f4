//! Accepts connections for as long as a pod is enrolled, also when descriptors run out.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};

/// How long to leave a listener alone when the process or machine is out of some resource. Without a
/// pause the readable listener would spin; with a longer one, recovery would be felt.
const PAUSE: Duration = Duration::from_millis(100);
/// Failures in a row between two log lines: one second's worth.
const FAILURES_PER_LOG_LINE: u32 = 10;

/// Hands every accepted connection to `serve`; returns only when the task is ended.
pub(crate) async fn accept_all(listener: TcpListener, serve: impl Fn(TcpStream, SocketAddr)) {
    let mut failures = 0;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                failures = 0;
                serve(stream, peer);
            }
            // The client gave up between its handshake and our accept; the next one may be fine.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if failures % FAILURES_PER_LOG_LINE == 0 {
                    tracing::warn!(%error, "accepting connections: waiting for resources; raise the descriptor limit (nofile) if this lasts");
                }
                failures += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
