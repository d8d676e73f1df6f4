//! Serves a connection that arrives at a local pod: authenticate, authorize, deliver.

mod ending;
mod host;

use std::{
    future::{Future, pending},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use sluice_policy::{Connection, DenyReason, MtlsMode, Verdict};
use sluice_spiffe::SpiffeId;
use sluice_sys::tcp::TcpStream;
use sluice_tls::{Channel, Peer};
use sluice_wire::{Preamble, ResetReason};
use tokio::time::timeout;

use self::ending::{Failure, Leaving, ended};
pub(crate) use self::host::Host;
use crate::{
    access, closing,
    delivery::deliver,
    descriptors::{self, Begins},
    live::{Direction, Facts, Live, Transport},
    local::{Delivered, Offer},
    plain::{self, PlainEnd},
    pod::Pod,
    pool::MAX_IDLE_TIME,
    preamble::{HELLO_TIME, NEWCOMER_SILENCE, STRANGER_SILENCE, read_preamble},
    relay::{Outcome, Relay, Side},
    series::Ending,
    session::{Broken, Session},
    worker::Worker,
};

/// How long a session may wait for its next stream: longer than the client's pool keeps it, so that
/// the client decides and no stream is opened on a connection that is being closed.
const STREAM_TIME: Duration = MAX_IDLE_TIME.saturating_mul(2);
/// How long a connection may take to open its stream on the session that it waited for. A session that has had none by
/// then was made ahead.
const FIRST_STREAM_TIME: Duration = Duration::from_secs(1);
/// How long a session within this process serves, over which no stream passes. After that the client has to prove
/// itself again, over a network that still lets it through.
const PROOF_TIME: Duration = Duration::from_secs(30);
/// How long a pod that has just been enrolled may take to fetch its certificate.
const CERTIFICATE_TIME: Duration = Duration::from_secs(5);

/// A connection that arrived.
struct Arrived {
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    client: SocketAddr,
    local: SocketAddr,
}

/// Carries one inbound connection to its end.
pub(crate) async fn serve(
    worker: Arc<Worker>,
    pod: Arc<Pod>,
    stream: TcpStream,
    client: SocketAddr,
) {
    let Ok(local) = stream.local_addr() else { return };
    if !pod.addresses.contains(&local.ip()) {
        // Somebody inside the pod dialled the agent's own port instead of being steered to it.
        return closing::by_reset(&stream);
    }
    let snapshot = worker.shared.snapshot();
    let Some(member) = snapshot.member(&pod.uid) else {
        return closing::by_reset(&stream);
    };
    let mode = member.policy.mode(local.port());
    let is_known = worker.shared.must_speak_mesh(&snapshot, client.ip(), local);
    let expects_mesh = snapshot.expects_mesh(client.ip(), local);
    // An open connection must not keep alive the snapshot that it began with.
    drop(snapshot);
    let arrived = Arrived { worker, pod, client, local };
    if let Err(shortage) = descriptors::check(&stream, Begins::Inbound) {
        return arrived.refuse(&stream, Transport::Plaintext, &shortage.into());
    }
    if mode == MtlsMode::Disable {
        return Box::pin(arrived.plaintext(stream, Vec::new())).await;
    }
    let silence = match mode {
        MtlsMode::Permissive if !is_known => {
            Some(if expects_mesh { NEWCOMER_SILENCE } else { STRANGER_SILENCE })
        }
        MtlsMode::Strict | MtlsMode::Permissive | MtlsMode::Disable => None,
    };
    match Box::pin(arrived.pod.while_there(read_preamble(&stream, silence))).await {
        Ok(first) if first.preamble == Preamble::Mesh => arrived.mesh(stream, first.bytes).await,
        Ok(_) if is_known => {
            arrived.refuse(&stream, Transport::Plaintext, &Failure::PlaintextFromMesh);
        }
        Ok(first) => Box::pin(arrived.plaintext(stream, first.bytes)).await,
        Err(error) => {
            arrived.refuse(&stream, Transport::Plaintext, &Failure::Session(error.into()));
        }
    }
}

/// Lets in a connection that the pod itself has opened, if policy does. Whoever carries the connection logs its end.
///
/// # Errors
///
/// Returns the reason, for the other end, if the connection is not let in or cannot be delivered.
pub(crate) async fn let_in(
    worker: &Arc<Worker>,
    pod: &Arc<Pod>,
    client: SocketAddr,
    local: SocketAddr,
) -> Result<Delivered, ResetReason> {
    let arrived = Arrived { worker: Arc::clone(worker), pod: Arc::clone(pod), client, local };
    // Listed before it is judged: a policy change from here on finds it.
    let live =
        worker.list(pod, arrived.facts(Transport::Local, client, Some(pod.identity.clone())));
    match arrived.open(client, &pod.identity).await {
        Ok(application) => Ok(Delivered { application, live }),
        Err((reason, failure)) => Err(arrived.turned_away(&live, reason, &failure)),
    }
}

// === impl Arrived ===

impl Arrived {
    fn facts(&self, transport: Transport, source: SocketAddr, identity: Option<SpiffeId>) -> Facts {
        Facts {
            direction: Direction::Inbound,
            transport,
            pod: self.pod.uid.clone(),
            source,
            source_identity: identity,
            requested: self.local,
            destination: self.local,
            destination_identity: Some(self.pod.identity.clone()),
        }
    }

    fn refuse(&self, stream: &TcpStream, transport: Transport, failure: &Failure) {
        closing::by_reset(stream);
        self.pod.stats.inbound_refused.increment();
        let live = Live::new(self.facts(transport, self.client, None));
        access::connection_complete(&self.worker.shared.snapshot(), &live, Some(failure));
    }

    /// Checks whether policy lets this client in, by the snapshot in force at this moment.
    fn authorize(&self, principal: Option<&SpiffeId>) -> Result<(), DenyReason> {
        let snapshot = self.worker.shared.snapshot();
        let connection =
            Connection { principal, source: self.client.ip(), destination: self.local };
        let Some(member) = snapshot.member(&self.pod.uid) else {
            return Err(DenyReason::NotAllowed);
        };
        match member.policy.decide(&connection) {
            Verdict::Allow => Ok(()),
            Verdict::Deny(reason) => Err(reason),
        }
    }

    async fn mesh(&self, stream: TcpStream, received: Vec<u8>) {
        // On the heap, so that a session that idles does not keep the room of its handshake.
        let established = async { Ok(self.established(stream, received).await) };
        let Ok(Some(mut session)) = Box::pin(self.pod.while_there(established)).await else {
            return;
        };
        if session.link.is_some() || !session.holds_input() {
            // The tickets, which otherwise leave with the first bytes of an application: none may come for long. A failure
            // shows again at once.
            drop(session.try_flush().await);
        }
        let mut offer = self.offer(&session);
        // However long the session lives, each stream is judged by the policy of its own moment.
        let mut is_new = true;
        loop {
            let patience = match &offer {
                Some(_) => PROOF_TIME,
                None if is_new => FIRST_STREAM_TIME,
                None => STREAM_TIME,
            };
            let next = tokio::select! {
                biased;
                // Not even a stream that has been opened: its client may mean a successor with the same address.
                () = self.pod.gone() => break,
                // A stream that has been opened already is served.
                next = timeout(patience, session.next_stream()) => next,
                // A new session serves one stream first, because a connection waits for it.
                () = self.worker.retired(), if !is_new => break,
            };
            // The client closes a session that is of no use to it any more. If this side did, the application's port
            // would be in TIME_WAIT.
            if next.is_err() && (offer.take().is_some() || std::mem::take(&mut is_new)) {
                continue;
            }
            let Ok(Ok(client)) = next else { break };
            is_new = false;
            match self.mesh_stream(&mut session, client).await {
                Ok(()) => {}
                Err(Leaving::Reset(reason)) => return session.reset(reason),
                Err(Leaving::Close) => break,
                Err(Leaving::Drop) => return,
            }
        }
        session.close();
    }

    /// If the client is in this process too, lets it open its streams by a call.
    fn offer(&self, session: &Session) -> Option<Offer> {
        let link = session.link.clone()?;
        Some(link.offer(Host::new(&self.pod, self.client, self.local, session.peer.clone())))
    }

    fn log_refusal(&self, failure: &Failure) {
        self.pod.stats.inbound_refused.increment();
        let live = Live::new(self.facts(Transport::MutualTls, self.client, None));
        access::connection_complete(&self.worker.shared.snapshot(), &live, Some(failure));
    }

    /// Returns a session whose handshake was over in time. Logs the refusal otherwise.
    async fn established(&self, stream: TcpStream, received: Vec<u8>) -> Option<Session> {
        let failure = match timeout(HELLO_TIME, self.handshake(stream, received)).await {
            Ok(Ok(session)) => return Some(session),
            Ok(Err(broken)) => broken,
            Err(_) => Broken::HandshakeTimeout(HELLO_TIME),
        };
        self.log_refusal(&Failure::Session(failure));
        None
    }

    async fn handshake(&self, stream: TcpStream, received: Vec<u8>) -> Result<Session, Broken> {
        let certificates = &self.worker.shared.certificates;
        let identity = certificates
            .wait(&self.pod.identity, CERTIFICATE_TIME)
            .await
            .map_err(io::Error::other)?;
        let links = &self.worker.shared.links;
        Session::handshake(stream, Channel::accept(&identity)?, &identity, links, received).await
    }

    /// Serves one stream. The session can then carry another, unless the error says how it must end.
    async fn mesh_stream(&self, session: &mut Session, client: SocketAddr) -> Result<(), Leaving> {
        let opened = Box::pin(self.let_in(&mut session.peer, client, pending())).await;
        let Delivered { application, live } = opened.map_err(Leaving::Reset)?;
        self.carry(session, application, &live).await
    }

    /// Lets in a stream that `peer` opens for `client`, if the peer is still trusted, policy lets it in, and it is not
    /// `cut` meanwhile.
    async fn let_in(
        &self,
        peer: &mut Peer,
        client: SocketAddr,
        cut: impl Future<Output = ResetReason>,
    ) -> Result<Delivered, ResetReason> {
        // Listed before it is judged: a policy change from here on finds it.
        let facts = self.facts(Transport::MutualTls, client, Some(peer.id.clone()));
        let live = self.worker.list(&self.pod, facts);
        live.rests_on(&peer.chain);
        let certificates = &self.worker.shared.certificates;
        let opened = match certificates.confirm(peer, &self.pod.identity) {
            Ok(()) => tokio::select! {
                biased;
                reason = cut => Err((reason, Failure::Ended(reason))),
                opened = self.open(client, &peer.id) => opened,
            },
            Err(error) => Err((ResetReason::Revoked, Failure::Untrusted(error))),
        };
        match opened {
            Ok(application) => {
                self.pod.stats.inbound_mtls.increment();
                Ok(Delivered { application, live })
            }
            Err((reason, failure)) => Err(self.turned_away(&live, reason, &failure)),
        }
    }

    /// Counts and logs a stream that is not let in. Returns the reason, for the other end.
    fn turned_away(&self, live: &Live, reason: ResetReason, failure: &Failure) -> ResetReason {
        self.pod.stats.inbound_refused.increment();
        access::connection_complete(&self.worker.shared.snapshot(), live, Some(failure));
        reason
    }

    /// Carries a stream that was let in over its session. Returns what [`Arrived::mesh_stream`] does.
    async fn carry(
        &self,
        session: &mut Session,
        application: std::net::TcpStream,
        live: &Live,
    ) -> Result<(), Leaving> {
        let (session, failure) = match TcpStream::from_std(application) {
            Ok(mut application) => {
                let relay = Relay::new(&mut application, session, live, Side::Server, &[]);
                let outcome = relay.run().await;
                if matches!(outcome, Outcome::Clean) {
                    closing::in_order(&application);
                }
                ended(outcome)
            }
            Err(error) => {
                let leaving = Leaving::Reset(ResetReason::Application);
                (Err(leaving), Some(Failure::Application(error)))
            }
        };
        let failure = failure.as_ref().map(|failure| failure as &dyn Ending);
        access::connection_complete(&self.worker.shared.snapshot(), live, failure);
        session
    }

    async fn open(
        &self,
        client: SocketAddr,
        peer: &SpiffeId,
    ) -> Result<std::net::TcpStream, (ResetReason, Failure)> {
        if client.ip() != self.client.ip() {
            let failure = Failure::ForeignClient { claimed: client, actual: self.client };
            return Err((ResetReason::Protocol, failure));
        }
        self.authorize(Some(peer)).map_err(|reason| (ResetReason::Denied, reason.into()))?;
        self.deliver(client).await.map_err(|source| {
            let is_shortage = descriptors::is_shortage(&source);
            let reason =
                if is_shortage { ResetReason::Overloaded } else { ResetReason::Unreachable };
            (reason, self.undelivered(source))
        })
    }

    async fn plaintext(&self, mut stream: TcpStream, head: Vec<u8>) {
        closing::by_reset(&stream);
        let live = self.worker.list(&self.pod, self.facts(Transport::Plaintext, self.client, None));
        let result = match self.open_plaintext().await {
            Ok(application) => {
                self.pod.stats.inbound_plaintext.increment();
                carry_plaintext(&mut stream, application, &live, head).await
            }
            Err(failure) => {
                self.pod.stats.inbound_refused.increment();
                Err(failure)
            }
        };
        let failure = result.as_ref().err().map(|failure| failure as &dyn Ending);
        if failure.is_none() {
            closing::in_order(&stream);
        }
        access::connection_complete(&self.worker.shared.snapshot(), &live, failure);
    }

    async fn open_plaintext(&self) -> Result<TcpStream, Failure> {
        self.authorize(None)?;
        let delivered = self.deliver(self.client).await.and_then(TcpStream::from_std);
        delivered.map_err(|source| self.undelivered(source))
    }

    async fn deliver(&self, client: SocketAddr) -> io::Result<std::net::TcpStream> {
        let sockets = &self.worker.shared.sockets;
        self.pod.while_there(deliver(sockets, &self.pod, client, self.local)).await
    }

    fn undelivered(&self, source: io::Error) -> Failure {
        let address = self.local;
        if descriptors::is_shortage(&source) {
            return Failure::NoSocket { address, source };
        }
        Failure::Unreachable { address, source }
    }
}

async fn carry_plaintext(
    stream: &mut TcpStream,
    mut application: TcpStream,
    live: &Live,
    head: Vec<u8>,
) -> Result<(), Failure> {
    match plain::relay(stream, &mut application, &[live], head).await {
        PlainEnd::Clean => {
            closing::in_order(&application);
            Ok(())
        }
        PlainEnd::Socket(_, error) => Err(Failure::Application(error)),
        PlainEnd::Cut(reason) => Err(Failure::Ended(reason)),
    }
}
