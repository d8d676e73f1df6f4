//! The directories that inotify watches for us, also after one of them has been replaced by another.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf, sync::mpsc};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};

/// The directories under watch. A watch belongs to a directory, not to its path: a new directory needs a new watch.
pub(super) struct Directories {
    /// `None` where inotify is not available; then only polling sees changes.
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the directory under watch, by path.
    watched: BTreeMap<PathBuf, Option<(u64, u64)>>,
}

impl Directories {
    pub(super) fn watch(paths: Vec<PathBuf>, events: mpsc::Sender<notify::Result<Event>>) -> Self {
        let watcher = notify::recommended_watcher(events)
            .inspect_err(|error| {
                tracing::warn!(
                    %error,
                    "no inotify, so changes of files are seen within seconds only; \
                     raise fs.inotify.max_user_instances",
                );
            })
            .ok();
        let unwatched = paths.into_iter().map(|path| (path, None)).collect();
        let mut directories = Self { watcher, watched: unwatched };
        directories.refresh();
        directories
    }

    /// Watches whatever directory each path leads to now.
    pub(super) fn refresh(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for (path, watched) in &mut self.watched {
            let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
            let now = fs::metadata(path).ok().map(identity);
            if now == *watched {
                continue;
            }
            if watched.take().is_some()
                && let Err(error) = watcher.unwatch(path)
            {
                tracing::trace!(%error, path = %path.display(), "the watch went with its directory");
            }
            if now.is_some() {
                match watcher.watch(path, RecursiveMode::NonRecursive) {
                    Ok(()) => *watched = now,
                    Err(error) => {
                        tracing::debug!(%error, path = %path.display(), "not watched, only polled");
                    }
                }
            }
        }
    }
}
