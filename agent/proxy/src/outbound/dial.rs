//! Makes sessions with other agents: for connections that wait for them, and spares for those to come.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use sluice_mesh::Snapshot;
use sluice_sys::{socket, tcp::TcpStream};
use sluice_tls::{Channel, Identity};
use tokio::time::{sleep, timeout};

use super::{CONNECT_TIME, Failure, speaks_mesh};
use crate::{
    descriptors::{self, Begins},
    pod::Pod,
    pool::{Key, MAX_PER_KEY},
    session::{Broken, Session},
    spares::Provision,
    turns::Turn,
    worker::Worker,
};

/// How long a pod without a certificate waits for one.
const CERTIFICATE_TIME: Duration = Duration::from_secs(5);
/// How long a spare waits for its tickets, with which the next handshake is cheaper.
const TICKET_TIME: Duration = Duration::from_millis(100);
/// How long a handshake may hold up those that wait for their turn.
const TURN_TIME: Duration = Duration::from_millis(4);
/// The pause between two spares: a handshake holds up what else its workers carry, at both ends.
const PACE: Duration = Duration::from_millis(20);

/// Returns the certificate with which the pod speaks to others.
pub(super) async fn certificate(worker: &Worker, pod: &Pod) -> Result<Arc<Identity>, Failure> {
    let identity = &pod.identity;
    let certificate = worker.shared.certificates.wait(identity, CERTIFICATE_TIME).await;
    certificate.map_err(|source| Failure::NoCertificate { identity: identity.clone(), source })
}

/// Makes a session for a connection that waits for it, or takes one that is idle when its turn comes. Returns whether it
/// has carried others. A burst of connections that wait is followed by spares.
pub(super) async fn connect(
    worker: &Arc<Worker>,
    pod: &Arc<Pod>,
    identity: &Identity,
    key: &Key,
) -> Result<(Session, bool), Failure> {
    let (wait, provision) = worker.spares.wait(key);
    if let Some(provision) = provision {
        let (worker, pod) = (Arc::clone(worker), Arc::clone(pod));
        tokio::spawn(async move {
            let provided = async {
                provide(&worker, &pod, &provision).await;
                Ok(())
            };
            // Of a pod that has gone, nothing is kept.
            drop(pod.while_there(provided).await);
        });
    }
    let turn = timeout(CONNECT_TIME, worker.shared.handshakes.wait(key)).await;
    let turn = turn.map_err(|_elapsed| Failure::AgentTimeout(key.destination))?;
    if let Some(session) = worker.take_session(key) {
        return Ok((session, true));
    }
    let mut session = in_turn(turn, make(worker, pod, identity, key, None)).await?;
    // Over a session within this process, any number of connections are opened by a call: no burst needs more.
    if session.link.is_none() {
        session.purpose = Some(wait.over());
    }
    Ok((session, false))
}

/// Makes a session, and gives up the turn when it takes long: a peer that is far away, or gone, holds up nobody else.
async fn in_turn<T>(turn: Turn<'_>, making: impl Future<Output = T>) -> T {
    let mut making = pin!(making);
    if let Ok(made) = timeout(TURN_TIME, &mut making).await {
        return made;
    }
    drop(turn);
    making.await
}

/// Makes the spares that a burst of connections calls for, one after another. A failure ends that: if connections find
/// the same, they say so.
async fn provide(worker: &Worker, pod: &Pod, provision: &Provision) {
    let key = provision.key();
    for _ in 0..MAX_PER_KEY {
        let Some(purpose) = provision.next(|| worker.idle_sessions(key)).await else { return };
        if worker.has_retired() || !is_current(&worker.shared.snapshot(), key) {
            return;
        }
        match Box::pin(spare(worker, pod, key)).await {
            Ok(mut session) => {
                session.purpose = Some(purpose);
                worker.put_session(pod, key.clone(), session);
                sleep(PACE).await;
            }
            Err(failure) => {
                let (pod, destination) = (&pod.uid, key.destination);
                return tracing::debug!(%pod, %destination, %failure, "no spare session");
            }
        }
    }
}

/// Returns whether connections still lead to the key's destination, and speak mutual TLS with the same identity there.
fn is_current(snapshot: &Snapshot, key: &Key) -> bool {
    let (address, port) = (key.destination.ip(), key.destination.port());
    snapshot
        .member_at(address)
        .is_some_and(|member| member.workload.identity == key.expected && speaks_mesh(member, port))
}

async fn spare(worker: &Worker, pod: &Pod, key: &Key) -> Result<Session, Failure> {
    let identity = certificate(worker, pod).await?;
    let mut session = make(worker, pod, &identity, key, Some(Begins::Spare)).await?;
    match timeout(TICKET_TIME, session.settle()).await {
        Ok(Err(broken)) => Err(broken.into()),
        Ok(Ok(())) | Err(_) => Ok(session),
    }
}

/// Makes a session. What `begins` with it must find enough descriptors; a connection has been checked already.
async fn make(
    worker: &Worker,
    pod: &Pod,
    identity: &Identity,
    key: &Key,
    begins: Option<Begins>,
) -> Result<Session, Failure> {
    let address = key.destination;
    let links = &worker.shared.links;
    let connecting = async {
        let tcp = dial(worker, pod, key.source, address)
            .await
            .map_err(|source| Failure::Connect { address, source })?;
        if let Some(begins) = begins {
            descriptors::check(&tcp, begins)?;
        }
        identity.acquaintance(&key.expected, address.ip()).await;
        let channel =
            Channel::connect(identity, &key.expected, address.ip()).map_err(Broken::from)?;
        Ok(Session::handshake(tcp, channel, identity, links, Vec::new()).await?)
    };
    let connecting = pod.while_there(async { Ok(connecting.await) });
    match timeout(CONNECT_TIME, connecting).await {
        Ok(Ok(connected)) => connected,
        Ok(Err(source)) => Err(Failure::Connect { address, source }),
        Err(_) => Err(Failure::AgentTimeout(address)),
    }
}

/// Connects from the pod's namespace and the address that the application would have used, by a socket that the
/// kernel lets past its hooks.
pub(super) async fn dial(
    worker: &Worker,
    pod: &Pod,
    source: IpAddr,
    destination: SocketAddr,
) -> io::Result<TcpStream> {
    let socket = {
        pod.enter()?;
        let socket = socket::tcp_socket(destination.is_ipv6())?;
        worker.shared.sockets.mark_upstream(socket.as_fd()).map_err(io::Error::other)?;
        socket::bind_address(&socket, source)?;
        socket
    };
    TcpStream::connect(socket, destination).await
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;
    use crate::{testing::key, turns::Turns};

    #[tokio::test]
    async fn a_handshake_that_takes_long_holds_up_others_for_a_moment_only() {
        let (turns, key) = (Turns::new(1), key(80));
        let soon = Duration::from_secs(1);
        let slow = in_turn(turns.wait(&key).await, timeout(2 * soon, pending::<()>()));
        let next = timeout(soon, async { in_turn(turns.wait(&key).await, ready(())).await });
        let (slow, next) = tokio::join!(slow, next);
        assert!(next.is_ok(), "it waited for one that gets no answer");
        assert!(slow.is_err(), "the slow one was given up with its turn");
    }
}
