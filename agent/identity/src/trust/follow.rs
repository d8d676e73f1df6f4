//! The thread that follows the files: wakes on inotify, waits until writers are done, and publishes.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind,
    event::{AccessKind, AccessMode, ModifyKind},
};
use sluice_spiffe::TrustDomain;
use sluice_tls::{Clock, TrustBundle};
use tokio::sync::watch;

use super::{
    TrustError, TrustFiles,
    directories::Directories,
    files::{self, Content, Seen},
    state::{State, Told},
};
use crate::Delivered;

/// How long no event may come before the files are read: an editor's save is several events.
const CALM: Duration = Duration::from_millis(50);
/// The longest wait for that calm: others may write in the same directory all the time.
const MAX_UNREST: Duration = Duration::from_millis(500);
/// The longest wait for a writer of one of our files to close it.
const MAX_UNFINISHED: Duration = Duration::from_secs(5);
/// How often the files are looked at without an event; also how soon a list is found to be out of date.
const POLL: Duration = Duration::from_secs(2);
/// How often files that change while they are read are read again before the next poll.
const READ_ATTEMPTS: usize = 20;

/// What the thread wakes for.
#[derive(Debug)]
pub(super) enum Wake {
    File(notify::Result<Event>),
    Delivered(Delivered),
    Stop,
}

pub(super) struct Follower {
    files: TrustFiles,
    state: State,
    seen: Option<Seen>,
    directories: Directories,
    wakes: mpsc::Receiver<Wake>,
    /// Files that were written and not closed since.
    unfinished: HashSet<PathBuf>,
    bundles: watch::Sender<Arc<TrustBundle>>,
    faults: watch::Sender<Arc<Vec<String>>>,
    stopped: bool,
}

/// What [`Follower::start`] answers: the follower and what it publishes.
type Started = (Follower, watch::Receiver<Arc<TrustBundle>>, watch::Receiver<Arc<Vec<String>>>);

// === impl Follower ===

impl Follower {
    /// Reads everything once.
    pub(super) fn start(
        files: TrustFiles,
        own: TrustDomain,
        delivered: Delivered,
        clock: Arc<dyn Clock>,
        wake: mpsc::Sender<Wake>,
        wakes: mpsc::Receiver<Wake>,
    ) -> Result<Started, TrustError> {
        let mut directories = Directories::new(wake);
        // Before the first look, so that no change falls between the two.
        directories.watch(files.directories());
        let mut state = State::new(files.clone(), own, delivered, clock);
        let seen = files.look();
        let contents = seen.keys().map(|path| (path.clone(), files::read(path))).collect();
        let (bundle, faults) = state.begin(contents).map_err(TrustError::Fault)?;
        let (bundles, bundles_out) = watch::channel(Arc::new(bundle));
        let (faults_in, faults_out) = watch::channel(Arc::default());
        let mut follower = Self {
            files,
            state,
            seen: Some(seen),
            directories,
            wakes,
            unfinished: HashSet::new(),
            bundles,
            faults: faults_in,
            stopped: false,
        };
        follower.say(&faults);
        Ok((follower, bundles_out, faults_out))
    }

    pub(super) fn run(mut self) {
        let mut next_poll = Instant::now() + POLL;
        while !self.stopped {
            let patience = next_poll.saturating_duration_since(Instant::now());
            let relevant = match self.next_event(patience) {
                Some(event) => self.note(&event),
                None => false,
            };
            if relevant {
                self.wait_for_calm();
            }
            if relevant || Instant::now() >= next_poll {
                self.directories.watch(self.files.directories());
                self.look();
                next_poll = Instant::now() + POLL;
            }
        }
    }

    /// Returns the next event of a file, or `None` after `patience` or when something else came.
    fn next_event(&mut self, patience: Duration) -> Option<Event> {
        match self.wakes.recv_timeout(patience) {
            Ok(Wake::File(Ok(event))) => Some(event),
            Ok(Wake::File(Err(error))) => {
                tracing::debug!(%error, "lost file events; polling sees what they were about");
                None
            }
            Ok(Wake::Delivered(delivered)) => {
                self.state.deliver(delivered);
                self.publish();
                None
            }
            Err(mpsc::RecvTimeoutError::Timeout) => None,
            Ok(Wake::Stop) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                self.stopped = true;
                None
            }
        }
    }

    /// Returns whether the event may mean a change. Reading the files causes events too, which must not count.
    fn note(&mut self, event: &Event) -> bool {
        match event.kind {
            // A file that was renamed or removed will not be closed under this name.
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
                let ours = self.files.paths();
                self.unfinished
                    .extend(event.paths.iter().filter(|path| ours.contains(path)).cloned());
                true
            }
            EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => true,
        }
    }

    /// Waits until writers are done. Half a file of roots may well be valid, and would cut off everybody whom the other
    /// half vouches for.
    fn wait_for_calm(&mut self) {
        let started = Instant::now();
        while started.elapsed() < MAX_UNFINISHED && !self.stopped {
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

    /// Takes over what has changed since the last look, in the files or by the passing of time.
    fn look(&mut self) {
        for _ in 0..READ_ATTEMPTS {
            let before = self.files.look();
            if self.seen.as_ref() == Some(&before) {
                return self.publish();
            }
            let read = |path: &PathBuf| (path.clone(), files::read(path));
            let contents: Vec<(PathBuf, Content)> = before.keys().map(read).collect();
            if self.files.look() == before {
                self.seen = Some(before);
                self.state.take(contents);
                return self.publish();
            }
            thread::sleep(CALM);
        }
        tracing::debug!("trust files change faster than they can be read; trying again later");
    }

    fn publish(&mut self) {
        let (bundle, faults) = self.state.evaluate();
        self.say(&faults);
        if let Some(bundle) = bundle {
            self.bundles.send_if_modified(|current| {
                let changed = **current != bundle;
                if changed {
                    *current = Arc::new(bundle);
                }
                changed
            });
        }
    }

    /// Publishes the faults, and logs which are new and which are over.
    fn say(&mut self, faults: &[Told]) {
        let shown = |(fault, consequence): &Told| format!("{fault} ({consequence})");
        let now: Vec<String> = faults.iter().map(shown).collect();
        self.faults.send_if_modified(|current| {
            if **current == now {
                return false;
            }
            for fault in now.iter().filter(|fault| !current.contains(fault)) {
                tracing::error!(%fault, "bad trust file");
            }
            for over in current.iter().filter(|fault| !now.contains(fault)) {
                tracing::info!(was = %over, "no longer so");
            }
            *current = Arc::new(now);
            true
        });
    }
}
