//! Follows the files: a thread that wakes on inotify, waits until writers are done, and publishes.
//!
//! Directories are watched, not files: editors and Kubernetes replace files by renaming, which a watch on
//! the file would not survive. Where inotify is blind (targets of links elsewhere, network file systems)
//! a slow poll sees the change.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, SystemTime},
};

use notify::{
    Event, EventKind,
    event::{AccessKind, AccessMode, ModifyKind},
};
use sluice_mesh::Snapshot;
use sluice_policy::Severity;
use sluice_spiffe::TrustDomain;
use tokio::sync::watch;

use crate::{
    AgentConfig, SourceStatus, StatusHandle,
    files::{Files, Seen},
    last_good::LastGood,
    state::{State, Taken},
};

mod directories;

use directories::Directories;

/// How long it must be calm after the last event before the files are read: an editor's save is several events.
const CALM: Duration = Duration::from_millis(50);
/// Longest wait for calm: others may write in the same directory all the time.
const MAX_UNREST: Duration = Duration::from_millis(500);
/// Longest wait for a writer of one of our files to close it.
const MAX_UNFINISHED: Duration = Duration::from_secs(5);
/// How often the files are looked at without an event.
const POLL: Duration = Duration::from_secs(2);
/// How often files that change while they are read are read again before the next poll.
const READ_ATTEMPTS: usize = 20;

/// The source that reads files: the mesh, and the source's own status. It follows the files until every receiver of its
/// snapshots is dropped.
#[derive(Clone, Debug)]
pub struct FileSource {
    /// The mesh; `None` while nothing is known of it yet.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// The source's own state.
    pub status: StatusHandle,
}

/// Why the source could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The thread could not be started.
    #[error(
        "starting the thread that follows the files: {0}; raise the limit on tasks (ulimit -u)"
    )]
    Thread(#[source] io::Error),
    /// The configuration names no files.
    #[error(
        "the state of the mesh comes from a cluster, not from files: use the source of clusters"
    )]
    NotFiles,
}

struct Follower {
    files: Files,
    state: State,
    seen: Option<Seen>,
    directories: Directories,
    events: mpsc::Receiver<notify::Result<Event>>,
    /// Files that were opened for writing and not closed since.
    unfinished: HashSet<PathBuf>,
    snapshots: watch::Sender<Option<Arc<Snapshot>>>,
    status: watch::Sender<Arc<SourceStatus>>,
    /// What was logged and still holds, so that it is not logged again.
    said: BTreeSet<String>,
}

// === impl FileSource ===

impl FileSource {
    /// Reads the files and follows their changes. What can be read now is published before this returns. A bad file is
    /// no error: the agent has to live with it until it is mended.
    pub fn watch(config: &AgentConfig) -> Result<Self, StartError> {
        let files = Files::of(config).ok_or(StartError::NotFiles)?;
        let last_good = LastGood::new(&config.state_dir, &config.instance);
        let state = State::restore(&config.trust_domain, last_good, &files);
        Self::follow(files, state)
    }

    /// Does what [`Self::watch`] does for the mesh file alone. No copy of the file is kept, for callers that must not
    /// act on what an earlier run knew: after a start beside a bad file, nothing is known.
    pub fn watch_mesh(mesh: &Path, trust_domain: &TrustDomain) -> Result<Self, StartError> {
        let files = Files { mesh: mesh.to_owned(), policies: None };
        let state = State::restore(trust_domain, LastGood::none(), &files);
        Self::follow(files, state)
    }

    fn follow(files: Files, state: State) -> Result<Self, StartError> {
        let (sender, events) = mpsc::channel();
        let (snapshots, snapshots_out) = watch::channel(None);
        let (status, status_out) = watch::channel(Arc::new(SourceStatus::default()));
        let mut follower = Follower {
            state,
            // Watched before the first look, so that no change falls between the two.
            directories: Directories::watch(files.directories(), sender),
            files,
            seen: None,
            events,
            unfinished: HashSet::new(),
            snapshots,
            status,
            said: BTreeSet::new(),
        };
        follower.look();
        thread::Builder::new()
            .name("file-source".to_owned())
            .spawn(move || follower.run())
            .map_err(StartError::Thread)?;
        Ok(Self { snapshots: snapshots_out, status: StatusHandle(status_out) })
    }
}

// === impl Follower ===

impl Follower {
    fn run(mut self) {
        let mut next_poll = Instant::now() + POLL;
        while !self.snapshots.is_closed() {
            let relevant =
                match self.next_event(next_poll.saturating_duration_since(Instant::now())) {
                    Some(event) => self.note(&event),
                    None => false,
                };
            if relevant {
                self.wait_for_calm();
            }
            if relevant || Instant::now() >= next_poll {
                self.directories.refresh();
                self.look();
                next_poll = Instant::now() + POLL;
            }
        }
    }

    /// Returns the next event, or `None` after `patience`. Lost events count as none: the next poll sees what they were
    /// about.
    fn next_event(&self, patience: Duration) -> Option<Event> {
        match self.events.recv_timeout(patience) {
            Ok(Ok(event)) => Some(event),
            Ok(Err(error)) => {
                tracing::debug!(%error, "lost file events; polling sees what they were about");
                None
            }
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                // There is no watcher, because inotify is not available: only polling is left.
                thread::sleep(patience);
                None
            }
        }
    }

    /// Returns whether the event may mean a change. Our own reading of the files causes events too, which do not.
    fn note(&mut self, event: &Event) -> bool {
        let ours = event.paths.iter().filter(|path| self.files.contain(path)).cloned();
        match event.kind {
            // A file that is renamed or gone will be closed under another name.
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(_))
            | EventKind::Remove(_) => {
                for path in &event.paths {
                    self.unfinished.remove(path);
                }
                true
            }
            EventKind::Access(_) => false,
            EventKind::Modify(ModifyKind::Data(_)) => {
                self.unfinished.extend(ours);
                true
            }
            EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => true,
        }
    }

    /// Waits until writers are done. Half a file may well be valid, and half the policies admit more than all of them.
    fn wait_for_calm(&mut self) {
        let started = Instant::now();
        while started.elapsed() < MAX_UNFINISHED {
            let event = self.next_event(CALM);
            if let Some(event) = &event {
                self.note(event);
            }
            let calm = event.is_none() || started.elapsed() > MAX_UNREST;
            if calm && self.unfinished.is_empty() {
                break;
            }
        }
        self.unfinished.clear();
    }

    /// Takes over what changed since the last look.
    fn look(&mut self) {
        for _ in 0..READ_ATTEMPTS {
            let before = self.files.look();
            if self.seen.as_ref() == Some(&before) {
                return;
            }
            let contents = self.files.read();
            if self.files.look() == before {
                self.seen = Some(before);
                let taken = self.state.take(contents);
                self.publish(taken);
                return;
            }
            thread::sleep(CALM);
        }
        tracing::debug!("the files change faster than they can be read; trying again later");
    }

    fn publish(&mut self, taken: Taken) {
        let Taken { snapshot, errors, findings } = taken;
        let mut status = SourceStatus { errors, findings, ..(**self.status.borrow()).clone() };
        self.say(&status);
        if let Some((snapshot, change)) = snapshot {
            status.version = status.version.wrapping_add(1);
            status.loaded_at = Some(SystemTime::now());
            let version = status.version;
            tracing::info!(version, pods = snapshot.members().len(), %change, "mesh state changed");
            // The status comes first: whoever sees the snapshot can look up its version.
            self.status.send_replace(Arc::new(status));
            self.snapshots.send_replace(Some(snapshot));
        } else {
            self.status.send_replace(Arc::new(status));
        }
    }

    /// Logs the errors and findings that are new, and those that no longer hold.
    fn say(&mut self, status: &SourceStatus) {
        let mut now = BTreeSet::new();
        for error in &status.errors {
            let text = error.to_string();
            if !self.said.contains(&text) {
                tracing::error!(error = %text, "bad file");
            }
            now.insert(text);
        }
        for finding in &status.findings {
            let text = finding.to_string();
            if !self.said.contains(&text) {
                match finding.severity {
                    Severity::Notice => tracing::info!(finding = %text, "policy"),
                    Severity::Warning => tracing::warn!(finding = %text, "policy"),
                }
            }
            now.insert(text);
        }
        for over in self.said.difference(&now) {
            tracing::info!(was = %over, "no longer so");
        }
        self.said = now;
    }
}
