//! A pod's side of a session whose client is in this process: lets the client's streams in when it calls.

use std::{future::Future, net::SocketAddr, sync::Arc};

use sluice_tls::Peer;
use sluice_wire::ResetReason;
use tokio::sync::Mutex;

use super::Arrived;
use crate::{local::Delivered, pod::Pod, worker::Worker};

/// The server's end of a session, for the one client that has proved itself there.
#[derive(Debug)]
pub(crate) struct Host {
    pod: Arc<Pod>,
    /// Where the session comes from.
    client: SocketAddr,
    local: SocketAddr,
    /// Who the client has proved to be.
    peer: Mutex<Peer>,
}

// === impl Host ===

impl Host {
    pub(crate) fn new(pod: &Arc<Pod>, client: SocketAddr, local: SocketAddr, peer: Peer) -> Self {
        Self { pod: Arc::clone(pod), client, local, peer: Mutex::new(peer) }
    }

    /// Whether the pod is still there. If not, its address may be another pod's, which has to be proved anew.
    pub(crate) fn is_there(&self, worker: &Worker) -> bool {
        !self.pod.has_gone() && worker.shared.snapshot().member(&self.pod.uid).is_some()
    }

    /// Lets in a stream for `client`, if the peer is still trusted, policy lets it in, and it is not `cut` meanwhile.
    /// It is judged as one that arrives over the session.
    ///
    /// # Errors
    ///
    /// Returns the reason if the stream is not let in or cannot be delivered. The session is then to be closed.
    pub(crate) async fn let_in(
        &self,
        worker: &Arc<Worker>,
        client: SocketAddr,
        cut: impl Future<Output = ResetReason>,
    ) -> Result<Delivered, ResetReason> {
        let arrived = Arrived {
            worker: Arc::clone(worker),
            pod: Arc::clone(&self.pod),
            client: self.client,
            local: self.local,
        };
        arrived.let_in(&mut *self.peer.lock().await, client, cut).await
    }
}
