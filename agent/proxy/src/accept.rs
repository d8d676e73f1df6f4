//! Accepts connections for as long as a pod is enrolled, even when descriptors run out.

use std::{io, net::SocketAddr, time::Duration};

use sluice_sys::tcp::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// How long to leave a listener alone when the process or machine is out of some resource. Without a pause the
/// readable listener would make the loop spin; with a longer one, recovery would be noticeably late.
const PAUSE: Duration = Duration::from_millis(100);
/// Failures in a row between two log lines: one second's worth.
const FAILURES_PER_LOG_LINE: u32 = 10;

/// Hands every accepted connection to `serve` until `stop` fires or is dropped. Connections that are in the backlog
/// at that moment are still accepted; by then the kernel steers no new ones here.
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
    accept_waiting(&listener, serve);
}

/// Accepts what waits in the backlog, asking the kernel itself: tokio lets a task accept only so many at once, and knows
/// of those only that it has been told of.
fn accept_waiting(listener: &TcpListener, serve: impl Fn(TcpStream, SocketAddr)) {
    loop {
        match listener.try_accept() {
            Ok((stream, peer)) => serve(stream, peer),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, net::Ipv4Addr};

    use sluice_sys::socket;

    use super::*;

    /// More than tokio lets a task do at once, and fewer than a listener has room for.
    const WAITING: usize = 500;

    #[tokio::test]
    async fn all_that_wait_when_it_is_to_stop_are_served() {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let listener = socket::listen(any, 1024).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let connect = |_| std::net::TcpStream::connect(address).unwrap();
        let clients: Vec<_> = (0..WAITING).map(connect).collect();
        let (stop, stopped) = oneshot::channel();
        drop(stop);
        let served = Cell::new(0);
        accept_all(listener, stopped, |_, _| served.set(served.get() + 1)).await;
        assert_eq!(served.get(), clients.len());
    }
}
