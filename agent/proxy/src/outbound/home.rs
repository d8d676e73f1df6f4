//! A captured connection that leads back to its own pod: by a service's address, or by chance among its endpoints.
//!
//! It never leaves the pod, whose hooks leave connections between its own addresses alone, those of the agent too. So
//! there is no session: both ends are the identity that the pod was enrolled with, which policy judges as ever.

use std::{net::SocketAddr, sync::Arc};

use super::{Captured, Failure, ending::complete};
use crate::{closing, inbound, live::Transport, local::Local, preamble::first_bytes};

impl Captured {
    /// Whether `address` is one of the pod that the connection comes from.
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
