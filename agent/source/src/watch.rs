//! Follows the files in a thread of its own, and publishes what they say.

use std::{
    collections::BTreeSet, convert::Infallible, io, path::Path, sync::Arc, thread, time::SystemTime,
};

use sluice_files::{Follower, News};
use sluice_mesh::Snapshot;
use sluice_policy::Severity;
use sluice_spiffe::TrustDomain;
use tokio::sync::watch;

use crate::{
    AgentConfig, SourceStatus, StatusHandle,
    files::{Contents, Files},
    last_good::LastGood,
    state::{State, Taken},
};

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

struct Publisher {
    files: Follower<Files, Infallible>,
    state: State,
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
        let (snapshots, snapshots_out) = watch::channel(None);
        let (status, status_out) = watch::channel(Arc::new(SourceStatus::default()));
        let files = Follower::new(files);
        let mut publisher = Publisher { files, state, snapshots, status, said: BTreeSet::new() };
        let contents = publisher.files.begin();
        publisher.take(contents);
        thread::Builder::new()
            .name("file-source".to_owned())
            .spawn(move || publisher.run())
            .map_err(StartError::Thread)?;
        Ok(Self { snapshots: snapshots_out, status: StatusHandle(status_out) })
    }
}

// === impl Publisher ===

impl Publisher {
    fn run(mut self) {
        while !self.snapshots.is_closed() {
            if let News::Changed(contents) = self.files.wait() {
                self.take(contents);
            }
        }
    }

    fn take(&mut self, contents: Contents) {
        let taken = self.state.take(contents);
        self.publish(taken);
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
