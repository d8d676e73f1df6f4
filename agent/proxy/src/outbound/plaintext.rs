//! A captured connection whose destination takes no TLS: outside the mesh, or a port that its pod has opted out.

use std::{net::SocketAddr, sync::Arc};

use tokio::time::timeout;

use super::{CONNECT_TIME, Captured, Failure, TcpStream, dial::dial, ending::complete};
use crate::{
    closing,
    live::{Live, Transport},
    plain::{self, PlainEnd},
};

impl Captured {
    /// Carries the connection to its end.
    pub(super) async fn into_plaintext(mut self, address: SocketAddr) {
        let worker = Arc::clone(&self.worker);
        let live = worker.list(&self.pod, self.facts(Transport::Plaintext, address, None));
        let result = match self.dial_in_time(address).await {
            Ok(server) => {
                self.pod.stats.outbound_plaintext.increment();
                self.carry_plaintext(&live, server).await
            }
            Err(failure) => {
                self.pod.stats.outbound_refused.increment();
                Err(failure)
            }
        };
        if result.is_ok() {
            closing::in_order(&self.application);
        }
        complete(&worker.shared.snapshot(), &live, result);
    }

    async fn dial_in_time(&self, address: SocketAddr) -> Result<TcpStream, Failure> {
        let dialling = dial(&self.worker, &self.pod, self.client.ip(), address);
        let dialling = self.pod.while_there(dialling);
        match timeout(CONNECT_TIME, dialling).await {
            Ok(connected) => connected.map_err(|source| Failure::Connect { address, source }),
            Err(_) => Err(Failure::Timeout(address)),
        }
    }

    async fn carry_plaintext(&mut self, live: &Live, mut server: TcpStream) -> Result<(), Failure> {
        closing::by_reset(&server);
        match plain::relay(&mut self.application, &mut server, &[live], Vec::new()).await {
            PlainEnd::Clean => {
                closing::in_order(&server);
                Ok(())
            }
            PlainEnd::Socket(_, error) => Err(Failure::Application(error)),
            PlainEnd::Cut(reason) => Err(Failure::Ended(reason)),
        }
    }
}
