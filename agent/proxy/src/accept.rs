//! Accepts connections for as long as a pod is enrolled, also when descriptors run out.

use std::{io, net::SocketAddr, time::Duration};

use futures_util::FutureExt;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

/// How long to leave a listener alone when the process or machine is out of some resource. Without a
/// pause the readable listener would spin; with a longer one, recovery would be felt.
const PAUSE: Duration = Duration::from_millis(100);
/// Failures in a row between two log lines: one second's worth.
const FAILURES_PER_LOG_LINE: u32 = 10;

/// Hands every accepted connection to `serve` until `stop` fires or is dropped. Connections that wait in
/// the backlog at that moment are still accepted: the kernel steers no new ones here by then.
pub(crate) async fn accept_all(
    listener: TcpListener,
    mut stop: oneshot::Receiver<()>,
    serve: impl Fn(TcpStream, SocketAddr),
) {
    let mut failures = 0;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = &mut stop => break,
        };
        match accepted {
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
    while let Some(Ok((stream, peer))) = listener.accept().now_or_never() {
        serve(stream, peer);
    }
}
