//! Keeps the known state on disk, for a start without the API server.

use std::{fs, io, os::unix::fs::DirBuilderExt, path::PathBuf};

use sluice_cluster::Cluster;
use sluice_files::replace;

/// The files of one agent.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    directory: PathBuf,
}

/// The two parts of the state: rules are written at once, members from time to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Rules,
    Members,
}

// === impl Memory ===

impl Memory {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn path(&self, part: Part) -> PathBuf {
        self.directory.join(match part {
            Part::Rules => "rules.json",
            Part::Members => "members.json",
        })
    }

    /// Writes a part; a reader sees either the old text or the new one.
    pub(crate) fn keep(&self, part: Part, text: &[u8]) -> io::Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.directory)?;
        replace(&self.path(part), text, 0o600)
    }

    /// Removes both parts.
    pub(crate) fn forget(&self) -> io::Result<()> {
        [Part::Rules, Part::Members].into_iter().try_for_each(|part| {
            match fs::remove_file(self.path(part)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            }
        })
    }

    /// Restores the remembered state into the cluster. Returns whether there was anything usable.
    pub(crate) fn restore(&self, cluster: &mut Cluster) -> bool {
        let read = |part| fs::read(self.path(part));
        let (rules, members) = match (read(Part::Rules), read(Part::Members)) {
            (Ok(rules), Ok(members)) => (rules, members),
            (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return false;
            }
            (Err(error), _) | (_, Err(error)) => {
                self.refuse(&error);
                return false;
            }
        };
        match cluster.restore(&rules, &members) {
            Ok(()) => true,
            Err(error) => {
                self.refuse(&error);
                false
            }
        }
    }

    fn refuse(&self, error: &dyn std::error::Error) {
        tracing::warn!(
            directory = %self.directory.display(), %error,
            "what an earlier run remembered is not used; the API server is asked for everything",
        );
    }
}
