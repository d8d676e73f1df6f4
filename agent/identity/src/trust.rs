//! Who is believed: roots, revocation lists and denied identities, from files that are followed and from what
//! the CA delivers.
//!
//! ```text
//!   roots, federated, crls, denied (files) ──┐
//!                                            ├── state ──> TrustBundle, whole, whenever it changed
//!   what the CA delivers ────────────────────┘
//! ```
//! If a file goes bad while the agent runs, its last good content stays in force and the fault is reported. At the
//! start there is no good content yet, so bad roots and a bad list of denied identities stop the agent.

mod fault;
mod files;
mod follow;
mod state;

use std::{path::PathBuf, sync::Arc};

use sluice_files::Messages;
use sluice_spiffe::TrustDomain;
use sluice_tls::{Clock, CrlPolicy, TrustBundle};
use tokio::sync::watch;

pub use self::fault::TrustFault;
use self::follow::Publisher;
use crate::Delivered;

/// The files to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustFiles {
    /// Roots of our own trust domain (PEM). They take the place of delivered ones.
    pub roots: Option<PathBuf>,
    /// Whether delivered roots of our own trust domain are believed beside those of `roots`.
    pub delivered_too: bool,
    /// Roots of federated trust domains (PEM). They take the place of delivered ones of the same domain.
    pub federated: Vec<(TrustDomain, PathBuf)>,
    /// Files of revocation lists (PEM or DER), or directories of such files.
    pub crls: Vec<PathBuf>,
    /// A YAML list of identities.
    pub denied: Option<PathBuf>,
    /// What follows from a revocation list that is out of date.
    pub crl_policy: CrlPolicy,
}

/// Follows the files until it is dropped.
#[derive(Debug)]
pub struct Trust {
    bundles: watch::Receiver<Arc<TrustBundle>>,
    faults: watch::Receiver<Arc<Vec<String>>>,
    /// The thread ends when this is dropped.
    messages: Messages<Delivered>,
}

/// Why the files cannot be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// There is no good state to fall back to.
    #[error("{0}")]
    Fault(Arc<TrustFault>),
    /// The thread could not be started.
    #[error(
        "starting the thread that follows trust files: {0}; raise the limit on tasks (ulimit -u)"
    )]
    Thread(#[source] std::io::Error),
}

// === impl Trust ===

impl Trust {
    /// Reads the files and follows their changes. `delivered` is what the CA has delivered so far.
    pub fn follow(
        files: TrustFiles,
        own: TrustDomain,
        delivered: Delivered,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TrustError> {
        let (publisher, bundles, faults) = Publisher::start(files, own, delivered, clock)?;
        let messages = publisher.messages();
        std::thread::Builder::new()
            .name("trust-files".to_owned())
            .spawn(move || publisher.run())
            .map_err(TrustError::Thread)?;
        Ok(Self { bundles, faults, messages })
    }

    /// Replaces what the CA has delivered by `delivered`.
    pub fn deliver(&self, delivered: Delivered) {
        self.messages.send(delivered);
    }

    /// Returns a receiver for the trust in force, which sees every change.
    pub fn bundles(&self) -> watch::Receiver<Arc<TrustBundle>> {
        self.bundles.clone()
    }

    /// Returns a receiver for what is wrong with the files right now and what is in force instead, for the operator.
    pub fn faults(&self) -> watch::Receiver<Arc<Vec<String>>> {
        self.faults.clone()
    }
}

#[cfg(test)]
mod tests;
