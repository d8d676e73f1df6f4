//! Accepts connections, bounds their number, and takes them past their TLS handshake before gRPC sees them.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use sluice_tls::ca::EndpointStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tonic::transport::server::Connected;

use crate::{
    authority::Authority,
    places::{Place, Places, Proof},
    server::Limits,
};

/// The pause after the system refused to accept a connection, which it does when descriptors run out.
const PAUSE: Duration = Duration::from_millis(100);

/// The other end of the connection, with every request.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) address: SocketAddr,
    /// To be given when a token was good.
    pub(crate) proof: Proof,
}

/// A connection with the place that it takes.
pub(crate) struct Connection {
    stream: EndpointStream,
    place: Place,
}

/// Accepts for as long as `ready` is received.
pub(crate) async fn accept(
    listener: TcpListener,
    authority: Arc<Authority>,
    limits: Limits,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let places = Places::new(limits);
    while !ready.is_closed() {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(mut place) = places.take(peer) else {
            tracing::debug!(%peer, "too many connections");
            continue;
        };
        let (authority, ready) = (Arc::clone(&authority), ready.clone());
        tokio::spawn(async move {
            let handshake = shake_hands(&authority, stream, peer);
            let handshake = tokio::time::timeout(limits.handshake, handshake);
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                () = poll_fn(|context| place.poll_closed(context)) => return,
            };
            match shaken {
                Ok(Ok(stream)) => {
                    // Nobody receives any more: the connection is dropped with what it holds.
                    drop(ready.send(Ok(Connection { stream, place })).await);
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS connection came about"),
                Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
            }
        });
    }
}

async fn shake_hands(
    authority: &Authority,
    stream: TcpStream,
    peer: SocketAddr,
) -> io::Result<EndpointStream> {
    stream.set_nodelay(true)?;
    authority.endpoint().accept(stream, peer).await
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        Client { address: self.stream.peer(), proof: self.place.proof().clone() }
    }
}

impl Connection {
    /// The stream, unless the place is to be free. Asked whatever the connection waits for, so that it is woken.
    fn stream(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut EndpointStream>> {
        if self.place.poll_closed(context).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(Pin::new(&mut self.stream))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_shutdown(context)
    }
}
