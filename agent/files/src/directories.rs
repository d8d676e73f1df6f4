//! The directories that inotify watches, also after one of them has been replaced by another.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};

/// The directories under watch. A watch belongs to a directory, not to its path: a new directory needs a new watch.
pub(crate) struct Directories {
    /// `None` where inotify is not available; then only polling sees changes.
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the directory under watch, by path.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

impl Directories {
    pub(crate) fn new(tell: impl Fn(notify::Result<Event>) + Send + 'static) -> Self {
        let watcher = notify::recommended_watcher(tell)
            .inspect_err(|error| {
                tracing::warn!(
                    %error,
                    "no inotify, so changes of files are seen within seconds only; \
                     raise fs.inotify.max_user_instances",
                );
            })
            .ok();
        Self { watcher, watched: BTreeMap::new() }
    }

    /// Watches whatever directory each path leads to now.
    pub(crate) fn watch(&mut self, paths: Vec<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        for path in paths {
            let now = fs::metadata(&path).ok().map(|found| (found.dev(), found.ino()));
            if now == self.watched.get(&path).copied() {
                continue;
            }
            if self.watched.remove(&path).is_some()
                && let Err(error) = watcher.unwatch(&path)
            {
                tracing::trace!(%error, path = %path.display(), "the watch went with its directory");
            }
            let Some(now) = now else { continue };
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.watched.insert(path, now)),
                Err(error) => {
                    tracing::debug!(%error, path = %path.display(), "not watched, only polled");
                }
            }
        }
    }
}
