//! Follows files: wakes on inotify, waits until writers are done, and reads.
//!
//! Directories are watched, not files: editors and Kubernetes replace files by renaming, which a watch on the file would
//! not survive. Where inotify is blind (targets of links elsewhere, network file systems) a slow poll sees the change.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind,
    event::{AccessKind, AccessMode, ModifyKind},
};

use crate::directories::Directories;

/// How long no event may come before the files are read: an editor's save is several events.
const CALM: Duration = Duration::from_millis(50);
/// The longest wait for that calm: others may write in the same directory all the time.
const MAX_UNREST: Duration = Duration::from_millis(500);
/// The longest wait for a writer of one of the files to close it.
const MAX_UNFINISHED: Duration = Duration::from_secs(5);
/// How often the files are looked at without an event.
const POLL: Duration = Duration::from_secs(2);
/// How often files that change while they are read are read again before the next poll.
const READ_ATTEMPTS: usize = 20;

/// The files that a [`Follower`] follows.
pub trait Followed {
    /// What the file system says about the files; equal as long as nothing has changed.
    type Seen: PartialEq;
    /// What the files hold.
    type Contents;

    /// Returns the directories in which a change may matter: those of the files, and those that may themselves be
    /// replaced.
    fn directories(&self) -> Vec<PathBuf>;

    /// Returns whether `path` is one of the files: an unfinished write to it is then worth waiting for.
    fn contain(&self, path: &Path) -> bool;

    /// Asks the file system, opening nothing but directories.
    fn look(&self) -> Self::Seen;

    /// Reads the files that were seen.
    fn read(&self, seen: &Self::Seen) -> Self::Contents;
}

/// Follows files, and listens to messages meanwhile.
pub struct Follower<F: Followed, M> {
    files: F,
    seen: Option<F::Seen>,
    directories: Directories,
    wakes: mpsc::Receiver<Wake<M>>,
    /// Kept so that there can always be another [`Messages`].
    wake: mpsc::Sender<Wake<M>>,
    next_poll: Instant,
    /// When the first event came that the files have not been looked at for.
    restless_since: Option<Instant>,
    /// Files that were written and not closed since.
    unfinished: HashSet<PathBuf>,
}

/// What [`Follower::wait`] has waited for.
#[derive(Debug)]
pub enum News<C, M> {
    /// The files have changed, and hold this now.
    Changed(C),
    /// The files were looked at, and nothing new was found. This happens at every poll.
    Unchanged,
    /// Somebody has sent this.
    Message(M),
    /// A [`Messages`] was dropped.
    Closed,
}

/// Sends messages to a follower.
#[derive(Debug)]
pub struct Messages<M>(mpsc::Sender<Wake<M>>);

#[derive(Debug)]
enum Wake<M> {
    File(notify::Result<Event>),
    Message(M),
    Closed,
}

// === impl Follower ===

impl<F: Followed, M: Send + 'static> Follower<F, M> {
    /// Begins to watch the files, before the first look, so that no change falls between the two.
    pub fn new(files: F) -> Self {
        let (wake, wakes) = mpsc::channel();
        let tell = wake.clone();
        let mut directories = Directories::new(move |event| drop(tell.send(Wake::File(event))));
        directories.watch(files.directories());
        Self {
            files,
            seen: None,
            directories,
            wakes,
            wake,
            next_poll: Instant::now() + POLL,
            restless_since: None,
            unfinished: HashSet::new(),
        }
    }

    /// Returns where to send messages.
    pub fn messages(&self) -> Messages<M> {
        Messages(self.wake.clone())
    }

    /// Reads the files for the first time. If they keep changing while they are read, they are soon read again.
    pub fn begin(&mut self) -> F::Contents {
        self.look().unwrap_or_else(|| self.files.read(&self.files.look()))
    }

    /// Waits until the files have been looked at again, because of an event or because it was time, or until a message
    /// has come.
    pub fn wait(&mut self) -> News<F::Contents, M> {
        loop {
            let until_poll = self.next_poll.saturating_duration_since(Instant::now());
            let patience = if self.restless_since.is_some() { CALM } else { until_poll };
            let quiet = match self.wakes.recv_timeout(patience) {
                Ok(Wake::File(Ok(event))) => {
                    if self.note(&event) {
                        self.restless_since.get_or_insert_with(Instant::now);
                    }
                    false
                }
                Ok(Wake::File(Err(error))) => {
                    tracing::debug!(%error, "lost file events; polling sees what they were about");
                    true
                }
                Ok(Wake::Message(message)) => return News::Message(message),
                Ok(Wake::Closed) => return News::Closed,
                Err(mpsc::RecvTimeoutError::Timeout | mpsc::RecvTimeoutError::Disconnected) => true,
            };
            if !self.is_time(quiet) {
                continue;
            }
            self.directories.watch(self.files.directories());
            let changed = self.look();
            self.next_poll = Instant::now() + POLL;
            return changed.map_or(News::Unchanged, News::Changed);
        }
    }

    /// Returns whether to look at the files now. Not while somebody writes: half a file may well be valid, and half the
    /// policies admit more than all of them; half a file of roots cuts off everybody whom the other half vouches for.
    fn is_time(&mut self, quiet: bool) -> bool {
        let Some(since) = self.restless_since else {
            return Instant::now() >= self.next_poll;
        };
        let unrest = since.elapsed();
        let calm = (quiet || unrest > MAX_UNREST) && self.unfinished.is_empty();
        let is_time = calm || unrest >= MAX_UNFINISHED;
        if is_time {
            self.restless_since = None;
            self.unfinished.clear();
        }
        is_time
    }

    /// Returns whether the event may mean a change. Our own reading of the files causes events too, which do not.
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
                let ours = event.paths.iter().filter(|path| self.files.contain(path));
                self.unfinished.extend(ours.cloned());
                true
            }
            EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => true,
        }
    }

    /// Returns what the files hold if they have changed since they were last read.
    fn look(&mut self) -> Option<F::Contents> {
        for _ in 0..READ_ATTEMPTS {
            let before = self.files.look();
            if self.seen.as_ref() == Some(&before) {
                return None;
            }
            let contents = self.files.read(&before);
            if self.files.look() == before {
                self.seen = Some(before);
                return Some(contents);
            }
            thread::sleep(CALM);
        }
        tracing::debug!("the files change faster than they can be read; trying again later");
        None
    }
}

// === impl Messages ===

impl<M> Messages<M> {
    /// Sends a message. It is lost if the follower is gone.
    pub fn send(&self, message: M) {
        drop(self.0.send(Wake::Message(message)));
    }
}

impl<M> Drop for Messages<M> {
    fn drop(&mut self) {
        drop(self.0.send(Wake::Closed));
    }
}

#[cfg(test)]
mod tests;
