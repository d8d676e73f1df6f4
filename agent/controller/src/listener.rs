//! Connections: accepted, bounded in number, and past their TLS handshake before gRPC sees them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use sluice_tls::ca::EndpointStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tonic::transport::server::Connected;

use crate::{authority::Authority, server::Limits};

/// How long nothing is accepted after the system refused a connection, which it does when descriptors run out.
const PAUSE: Duration = Duration::from_millis(100);

/// The client's address, with every request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client(pub(crate) SocketAddr);

/// A connection with the places that it takes.
pub(crate) struct Connection {
    stream: EndpointStream,
    _place: Place,
}

/// A place among all connections, and among those from one address.
struct Place {
    address: IpAddr,
    taken: Taken,
    _permit: OwnedSemaphorePermit,
}

type Taken = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// Accepts for as long as `ready` is received.
pub(crate) async fn accept(
    listener: TcpListener,
    authority: Arc<Authority>,
    limits: Limits,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let slots = Arc::new(Semaphore::new(limits.connections));
    let taken = Taken::default();
    while !ready.is_closed() {
        let Ok(permit) = Arc::clone(&slots).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let place = Place::take(&taken, peer.ip().to_canonical(), permit, limits);
        let Some(place) = place else {
            tracing::debug!(%peer, "too many connections from this address");
            continue;
        };
        let (authority, ready) = (Arc::clone(&authority), ready.clone());
        tokio::spawn(async move {
            let handshake = shake_hands(&authority, stream, peer);
            match tokio::time::timeout(limits.handshake, handshake).await {
                Ok(Ok(stream)) => {
                    // Nobody receives any more: the connection is dropped with what it holds.
                    drop(ready.send(Ok(Connection { stream, _place: place })).await);
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

// === impl Place ===

impl Place {
    fn take(
        taken: &Taken,
        address: IpAddr,
        permit: OwnedSemaphorePermit,
        limits: Limits,
    ) -> Option<Self> {
        let mut count = taken.lock().unwrap_or_else(PoisonError::into_inner);
        let here = count.entry(address).or_default();
        if *here >= limits.connections_per_address {
            return None;
        }
        *here += 1;
        drop(count);
        Some(Self { address, taken: Arc::clone(taken), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut count = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(here) = count.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                count.remove(&self.address);
            }
        }
    }
}

// === impl Connection ===

impl Connected for Connection {
    type ConnectInfo = Client;

    fn connect_info(&self) -> Client {
        Client(self.stream.peer())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
