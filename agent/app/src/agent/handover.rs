//! The handover of a node from one agent to another, without a moment in which nobody serves its pods.
//!
//! ```text
//!  new                                           old
//!   learns the mesh, gets certificates,
//!   has its programs verified
//!   "take over" ───────────────────────────────>  changes nothing in the kernel any more, and goes on serving
//!                <─────────────────── "frozen"
//!   puts its programs under the links and
//!   the pods' hooks to its own listeners
//!   "serving" ─────────────────────────────────>  accepts what was on its way; then only ends what is open
//!   (the connection stays open for as long as the new agent lives)
//! ```
//!
//! If the new one fails before it serves, the old one goes on; if it fails later, and the old one has not been
//! stopped yet, the old one starts anew.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use sluice_kernel::Datapath;
use sluice_mesh::Snapshot;
use sluice_spiffe::SpiffeId;
use sluice_tls::CertStore;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::{sleep, timeout},
};

use super::control::{Pods, identities};
use crate::cni::Departure;

const TAKE_OVER: &str = "take over\n";
const FROZEN: &str = "frozen\n";
const SERVING: &str = "serving\n";
/// How long either side may take to send its next word.
const WORD: Duration = Duration::from_secs(10);
/// How long the new agent may take from "frozen" to "serving": a few milliseconds for each pod.
const TAKING_OVER: Duration = Duration::from_mins(1);
/// How long missing certificates of some pods may delay the handover for the others.
const CERTIFICATES: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(50);

/// How far an agent has handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// This agent serves the node.
    Serving,
    /// Another agent is about to take over; this one still serves, but leaves the kernel alone.
    Frozen,
    /// Another agent serves the node.
    Superseded,
    /// The agent that had taken over has gone.
    Abandoned,
}

/// Returns the path of the socket on which a node's agent is asked to hand over.
pub(super) fn place(socket: &Path) -> PathBuf {
    socket.with_extension("handover")
}

// ---- the new agent's side

/// The connection to the agent that has served the node so far; it must stay open while this agent serves.
pub(super) struct Predecessor(BufReader<UnixStream>);

/// Returns whether an agent serves the node.
pub(super) async fn is_served(place: &Path) -> bool {
    UnixStream::connect(place).await.is_ok()
}

/// Waits until this agent could serve the node's pods, with their state known and their certificates issued. Returns
/// the identities for which certificates are now kept.
pub(super) async fn prepare(
    node: &str,
    snapshots: &mut watch::Receiver<Option<Arc<Snapshot>>>,
    certificates: &CertStore,
    place: &Path,
) -> anyhow::Result<HashSet<SpiffeId>> {
    tracing::info!("another agent serves this node: getting ready to take over");
    let snapshot = snapshots.wait_for(Option::is_some).await.context("BUG: no source")?.clone();
    let wanted = snapshot.map(|snapshot| identities(&snapshot, node)).unwrap_or_default();
    for identity in &wanted {
        certificates.want(identity);
    }
    let started = Instant::now();
    let mut said = false;
    loop {
        let missing = wanted.iter().filter(|identity| certificates.get(identity).is_none()).count();
        if missing == 0 || (missing < wanted.len() && started.elapsed() > CERTIFICATES) {
            return Ok(wanted);
        }
        if started.elapsed() > CERTIFICATES && !is_served(place).await {
            return Ok(wanted);
        }
        if started.elapsed() > CERTIFICATES && !std::mem::replace(&mut said, true) {
            let statuses = certificates.status();
            let error = statuses.into_iter().find_map(|status| status.last_error);
            tracing::warn!(missing, error, "no certificate yet: the other agent goes on serving");
        }
        sleep(LOOK).await;
    }
}

/// Has the agent that serves the node leave its hooks alone from now on. Returns `None` if there is no such agent.
pub(super) async fn freeze(place: &Path) -> anyhow::Result<Option<Predecessor>> {
    let Ok(stream) = UnixStream::connect(place).await else { return Ok(None) };
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
        bail!("{} belongs to a process that is not root, so not to an agent", place.display());
    }
    let mut stream = BufReader::new(stream);
    stream.write_all(TAKE_OVER.as_bytes()).await?;
    match word(&mut stream, WORD + TAKING_OVER).await.as_deref() {
        Some(FROZEN) => Ok(Some(Predecessor(stream))),
        // That agent has ended meanwhile, or handed over to a third one.
        None if !is_served(place).await => Ok(None),
        answer => bail!("the agent that serves this node does not hand over: it says {answer:?}"),
    }
}

// === impl Predecessor ===

impl Predecessor {
    /// Tells the predecessor that this agent serves the pods now.
    pub(super) async fn dismiss(&mut self) -> anyhow::Result<()> {
        let told = self.0.write_all(SERVING.as_bytes()).await;
        told.context("the agent that served this node before has gone, or has taken it back")
    }
}

// ---- the old agent's side

/// The parts that this agent leaves alone once another takes over.
pub(super) struct Keeper {
    pub(super) pods: Arc<Mutex<Pods>>,
    pub(super) datapath: Arc<Datapath>,
    pub(super) departure: Arc<Departure>,
    pub(super) stage: watch::Sender<Stage>,
}

// === impl Keeper ===

impl Keeper {
    /// Hands over to the first agent that asks and then serves. Returns once that agent has ended.
    pub(super) async fn offer(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) if stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) => {
                    if self.hand_over(BufReader::new(stream)).await {
                        return;
                    }
                }
                Ok(_) => tracing::warn!("refused to hand over to a process that is not root"),
                Err(error) => {
                    tracing::warn!(%error, "accepting a successor");
                    sleep(LOOK).await;
                }
            }
        }
    }

    /// Hands over to one successor and waits for its end. Returns false if it failed before it served.
    async fn hand_over(&self, mut successor: BufReader<UnixStream>) -> bool {
        if word(&mut successor, WORD).await.as_deref() != Some(TAKE_OVER) {
            return false;
        }
        tracing::info!("another agent takes this node over");
        self.departure.set_replaced(true);
        self.blocking(|pods, _| pods.freeze()).await;
        self.stage.send_replace(Stage::Frozen);
        let frozen = successor.write_all(FROZEN.as_bytes()).await;
        if frozen.is_err() || word(&mut successor, TAKING_OVER).await.as_deref() != Some(SERVING) {
            tracing::warn!("the other agent has failed: this one goes on");
            self.resume().await;
            return false;
        }
        self.stage.send_replace(Stage::Superseded);
        tracing::info!("another agent serves this node now");
        // The successor says nothing more: this read ends when the successor does.
        drop(successor.read_line(&mut String::new()).await);
        self.stage.send_replace(Stage::Abandoned);
        true
    }

    async fn resume(&self) {
        self.blocking(|pods, datapath| {
            if let Err(error) = datapath.reattach() {
                tracing::error!(%error, "the hooks are not this agent's again: restart it");
            }
            pods.unfreeze();
            drop(pods.audit());
        })
        .await;
        self.departure.set_replaced(false);
        self.stage.send_replace(Stage::Serving);
    }

    async fn blocking(&self, work: impl FnOnce(&mut Pods, &Datapath) + Send + 'static) {
        let (pods, datapath) = (Arc::clone(&self.pods), Arc::clone(&self.datapath));
        let done = tokio::task::spawn_blocking(move || {
            work(&mut pods.lock().unwrap_or_else(PoisonError::into_inner), &datapath);
        });
        if let Err(error) = done.await {
            tracing::error!(%error, "BUG: handing over panicked");
        }
    }
}

/// Reads the next word. Returns `None` if none comes in time.
async fn word(stream: &mut BufReader<UnixStream>, patience: Duration) -> Option<String> {
    let mut line = String::new();
    let read = timeout(patience, stream.read_line(&mut line)).await;
    matches!(read, Ok(Ok(length)) if length > 0).then_some(line)
}
