//! What the source has to say about itself: for `sluice status` and for the logs.

use std::{fmt, sync::Arc, time::SystemTime};

use sluice_policy::Finding;
use tokio::sync::watch;

use crate::FileError;

/// The source's own state at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceStatus {
    /// Counts the snapshots that were published; 0 while nothing is known yet.
    pub version: u64,
    /// When the last snapshot was published.
    pub loaded_at: Option<SystemTime>,
    /// Everything that is wrong on disk right now.
    pub errors: Vec<SourceError>,
    /// Where policies in force do something else than their authors may expect.
    pub findings: Vec<Finding>,
}

/// Something wrong on disk, and what is in force instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// What is wrong, and where.
    pub error: FileError,
    /// What follows from it.
    pub consequence: Consequence,
}

/// What is in force instead of a faulty file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consequence {
    /// The last good version of the file.
    LastGoodStays,
    /// Nothing is known of the mesh yet: pods that are captured stay so, and none is added.
    NoState,
    /// No version is known of these policies, so every connection that they could be about is denied.
    Denied,
}

/// Reads the status; cheap to clone.
#[derive(Clone, Debug)]
pub struct StatusHandle(pub(crate) watch::Receiver<Arc<SourceStatus>>);

impl StatusHandle {
    /// Returns the current status.
    pub fn status(&self) -> Arc<SourceStatus> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits for a status that was not seen through this handle yet; `None` when the source has ended.
    pub async fn changed(&mut self) -> Option<Arc<SourceStatus>> {
        self.0.changed().await.ok()?;
        Some(Arc::clone(&self.0.borrow_and_update()))
    }
}

impl fmt::Display for SourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.error, self.consequence)
    }
}

impl fmt::Display for Consequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LastGoodStays => "the last good version stays in force",
            Self::NoState => "nothing is known of the mesh yet",
            Self::Denied => {
                "no good version is known, so connections that it could be about are denied"
            }
        })
    }
}
