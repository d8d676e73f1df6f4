//! A captured connection that leads back to its own pod: the pod is an endpoint, perhaps one of several, of the
//! service that it dialled.
//!
//! It never leaves the pod: the hooks leave connections between a pod's own addresses alone, even the agent's. So
//! there is no session. Both ends have the identity that the pod was enrolled with, and policy judges it as usual.

use std::{net::SocketAddr, sync::Arc};

use super::{Captured, Failure, ending::complete};
use crate::{closing, inbound, live::Transport, local::Local, preamble::first_bytes};

impl Captured {
    /// Returns whether `address` belongs to the pod that the connection comes from.
    pub(super) fn leads_home(&self, address: SocketAddr) -> bool {
        self.pod.addresses.contains(&address.ip())
    }

    /// Carries the connection to its end.
    pub(super) async fn into_home(mut self, address: SocketAddr) {
        let worker = Arc::clone(&self.worker);
        let own = Some(self.pod.identity.clone());
        let live = worker.list(&self.pod, self.facts(Transport::Local, address, own));
        let head = first_bytes(&self.application);
        let result = match inbound::let_in(&worker, &self.pod, self.client, address).await {
            Ok(delivered) => Box::pin(self.local_stream(&live, Local { delivered, head })).await,
            Err(reason) => {
                self.pod.stats.outbound_refused.increment();
                Err(Failure::Ended(reason))
            }
        };
        if result.is_ok() {
            closing::in_order(&self.application);
        }
        complete(&worker.shared.snapshot(), &live, result);
    }
}
