//! Carries a local pod's captured connection: finds out where it was going, and takes it there.

mod dial;
mod ending;
mod home;
mod near;
mod plaintext;

use std::{io, net::SocketAddr, os::fd::AsFd, sync::Arc, time::Duration};

use sluice_mesh::{Client, Destination, Lack, Member, Snapshot};
use sluice_policy::MtlsMode;
use sluice_spiffe::SpiffeId;
use sluice_sys::tcp::TcpStream;
use sluice_tls::{Identity, VerifyError};
use sluice_wire::{Control, ResetReason};

use self::{
    dial::{certificate, connect},
    ending::complete,
    near::Near,
};
use crate::{
    access, closing,
    descriptors::{self, Begins, Shortage},
    live::{Direction, Facts, Live, Transport},
    local::Local,
    pod::Pod,
    pool::Key,
    preamble::first_bytes,
    relay::{Outcome, Relay, Resetter, Side},
    session::{Broken, Session},
    worker::Worker,
};

/// How long the peer's agent may take, from the first packet to the end of the handshake.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// Why a captured connection went nowhere, or ended before its time.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("service {service} {lack}")]
    NoEndpoint { service: String, lack: Lack },
    #[error("{0}")]
    Disputed(Arc<str>),
    #[error("no certificate for {identity}: {source}")]
    NoCertificate { identity: SpiffeId, source: sluice_tls::WaitError },
    #[error("connecting to {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("no answer from the agent of {0} within 10 s")]
    AgentTimeout(SocketAddr),
    #[error("no answer from {0} within 10 s")]
    Timeout(SocketAddr),
    #[error(transparent)]
    Session(#[from] Broken),
    #[error(transparent)]
    Shortage(#[from] Shortage),
    #[error("the application's connection: {0}")]
    Application(io::Error),
    #[error("the server's certificate is not accepted any more: {0}")]
    Untrusted(VerifyError),
    #[error("{0}")]
    Ended(ResetReason),
}

/// A captured connection. `application` comes from a listener whose connections are reset when they are closed: see
/// [`closing`].
struct Captured {
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    application: TcpStream,
    client: SocketAddr,
    requested: SocketAddr,
    /// Whether its destination is a pod on the same node.
    near: bool,
    /// Whether a mesh stream was opened; if not, the connection counts as refused.
    carried: bool,
}

/// Carries one captured connection to its end.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    application: TcpStream,
    client: SocketAddr,
) {
    let requested = match worker.shared.sockets.original_destination(application.as_fd()) {
        Ok(Some(requested)) => requested,
        // Somebody inside the pod dialled the agent's own port: there is nowhere to take this.
        Ok(None) => return,
        Err(error) => {
            tracing::error!(pod = %pod.uid, %error, "reading the original destination");
            return;
        }
    };
    let client = pod.seen_as(client);
    let snapshot = worker.shared.snapshot();
    let shortage = descriptors::check(&application, Begins::Outbound).err();
    let asking = snapshot.member(&pod.uid).map(|member| &member.workload);
    let asking = Client {
        address: client.ip(),
        node: asking.map_or("", |workload| &workload.node),
        zone: asking.and_then(|workload| workload.zone.as_deref()),
    };
    let destination = snapshot.resolve(requested, &asking, worker.shared.turn());
    let near = matches!(&destination, Destination::Member(member, _) if member.workload.node == asking.node);
    let captured = Captured { worker, pod, application, client, requested, near, carried: false };
    if let Some(shortage) = shortage {
        return captured.refuse(&snapshot, requested, &shortage.into());
    }
    match destination {
        // A connection does not keep the state of the mesh in which it began.
        Destination::Member(member, address) if speaks_mesh(&member, address.port()) => {
            let expected = member.workload.identity.clone();
            drop((member, snapshot));
            if captured.leads_home(address) {
                return Box::pin(captured.into_home(address)).await;
            }
            captured.into_mesh(expected, address).await;
        }
        Destination::Member(member, address) => {
            drop((member, snapshot));
            Box::pin(captured.into_plaintext(address)).await;
        }
        Destination::Outside(address) => {
            drop(snapshot);
            Box::pin(captured.into_plaintext(address)).await;
        }
        Destination::Unknown => {
            drop(snapshot);
            Box::pin(captured.into_plaintext(requested)).await;
        }
        Destination::NoEndpoint(service, lack) => {
            let service = format!("{}/{}", service.namespace, service.name);
            captured.refuse(&snapshot, requested, &Failure::NoEndpoint { service, lack });
        }
        Destination::Disputed(reason) => {
            captured.refuse(&snapshot, requested, &Failure::Disputed(reason));
        }
    }
}

/// Returns whether the pod answers mutual TLS on the port. A service may lead to a port where it does not, because
/// the pod has opted it out or policy disables mutual TLS.
fn speaks_mesh(member: &Member, port: u16) -> bool {
    member.workload.in_mesh
        && member.policy.mode(port) != MtlsMode::Disable
        && !member.workload.bypass.inbound_ports.contains(&port)
}

// === impl Captured ===

impl Captured {
    fn facts(
        &self,
        transport: Transport,
        destination: SocketAddr,
        identity: Option<SpiffeId>,
    ) -> Facts {
        Facts {
            direction: Direction::Outbound,
            transport,
            pod: self.pod.uid.clone(),
            source: self.client,
            source_identity: Some(self.pod.identity.clone()),
            requested: self.requested,
            destination,
            destination_identity: identity,
        }
    }

    fn refuse(&self, snapshot: &Snapshot, destination: SocketAddr, failure: &Failure) {
        self.pod.stats.outbound_refused.increment();
        let facts = self.facts(Transport::Plaintext, destination, None);
        access::connection_complete(snapshot, &Live::new(facts), Some(failure));
    }

    async fn into_mesh(mut self, expected: SpiffeId, address: SocketAddr) {
        let worker = Arc::clone(&self.worker);
        let facts = self.facts(Transport::MutualTls, address, Some(expected.clone()));
        let live = worker.list(&self.pod, facts);
        // Each on the heap, so that a connection does not keep the room of what it is not, or not any more.
        let result = match Box::pin(self.mesh_stream(&live, address, expected)).await {
            Ok(Some(local)) => Box::pin(self.local_stream(&live, local)).await,
            Ok(None) => Ok(()),
            Err(failure) => Err(failure),
        };
        if !self.carried {
            self.pod.stats.outbound_refused.increment();
        }
        if result.is_ok() {
            closing::in_order(&self.application);
        }
        complete(&worker.shared.snapshot(), &live, result);
    }

    /// Carries a stream over a session. If the destination's side is in this process too, only opens the stream and
    /// returns what is to be carried in memory.
    async fn mesh_stream(
        &mut self,
        live: &Live,
        address: SocketAddr,
        expected: SpiffeId,
    ) -> Result<Option<Local>, Failure> {
        let identity = Box::pin(certificate(&self.worker, &self.pod)).await?;
        let key = Key {
            pod: self.pod.uid.clone(),
            source_identity: self.pod.identity.clone(),
            source: self.client.ip(),
            destination: address,
            expected,
        };
        let (mut head, mut kept) = (first_bytes(&self.application), Vec::new());
        let shared = Arc::clone(&self.worker.shared);
        let mut turn = self.turn(&shared, &key).await?;
        loop {
            let (session, reused) = Box::pin(self.session(live, &identity, &key)).await?;
            if !std::mem::replace(&mut self.carried, true) {
                self.pod.stats.outbound_mtls.increment();
            }
            let ending = self.worker.returning.of(&key);
            let mut session = match Box::pin(self.near_stream(live, session, &key, &ending)).await?
            {
                Near::Opened(delivered) => return Ok(Some(Local { delivered, head })),
                Near::Ended if reused => continue,
                Near::Ended => return Err(Broken::Closed.into()),
                Near::Elsewhere(session) => session,
            };
            session.queue(&Control::open(self.client))?;
            drop(turn.take());
            let relay = Relay::new(&mut self.application, &mut session, live, Side::Client, &head);
            match relay.announcing(&ending).keeping(&mut kept).run().await {
                Outcome::Clean => {
                    self.worker.put_session(&self.pod, key.clone(), session);
                    return Ok(None);
                }
                Outcome::Unseen if reused => head.append(&mut kept),
                Outcome::Unseen => return Err(Broken::Closed.into()),
                Outcome::Broken(broken) => return Err(broken.into()),
                Outcome::Peer(reason) => return Err(Failure::Ended(reason)),
                Outcome::Reset(by) => {
                    self.worker.put_session(&self.pod, key.clone(), session);
                    return Err(match by {
                        Resetter::Own(error) => Failure::Application(error),
                        Resetter::Peer => Failure::Ended(ResetReason::Application),
                    });
                }
                Outcome::Application(error) => {
                    session.close();
                    return Err(Failure::Application(error));
                }
                Outcome::Cut(reason) => {
                    session.reset(reason);
                    return Err(Failure::Ended(reason));
                }
            }
        }
    }

    /// Returns a session that is trusted for a stream, and whether it has carried others.
    async fn session(
        &self,
        live: &Live,
        identity: &Identity,
        key: &Key,
    ) -> Result<(Session, bool), Failure> {
        let certificates = &*self.worker.shared.certificates;
        loop {
            let (mut session, reused) = match self.worker.session(key).await {
                Some(session) => (session, true),
                // Boxed: otherwise an idle connection would keep the space of its handshake.
                None => Box::pin(connect(&self.worker, &self.pod, identity, key)).await?,
            };
            if reused && !certificates.may_reuse(&session.peer, identity) {
                session.close();
                continue;
            }
            live.rests_on(&session.peer.chain);
            match session.still_trusted(certificates, &key.source_identity) {
                Ok(()) => return Ok((session, reused)),
                // A new session is judged by current trust and meets the server's newest certificate.
                Err(_) if reused => session.close(),
                Err(error) => return Err(Failure::Untrusted(error)),
            }
        }
    }
}
