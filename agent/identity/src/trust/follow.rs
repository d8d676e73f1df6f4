//! The thread that follows the files, and publishes what they and the CA say.

use std::sync::Arc;

use sluice_files::{Follower, Messages, News};
use sluice_spiffe::TrustDomain;
use sluice_tls::{Clock, TrustBundle};
use tokio::sync::watch;

use super::{
    TrustError, TrustFiles,
    state::{State, Told},
};
use crate::Delivered;

pub(super) struct Publisher {
    files: Follower<TrustFiles, Delivered>,
    state: State,
    bundles: watch::Sender<Arc<TrustBundle>>,
    faults: watch::Sender<Arc<Vec<String>>>,
}

/// What [`Publisher::start`] answers: the publisher and what it publishes.
type Started = (Publisher, watch::Receiver<Arc<TrustBundle>>, watch::Receiver<Arc<Vec<String>>>);

// === impl Publisher ===

impl Publisher {
    /// Reads everything once.
    pub(super) fn start(
        files: TrustFiles,
        own: TrustDomain,
        delivered: Delivered,
        clock: Arc<dyn Clock>,
    ) -> Result<Started, TrustError> {
        let mut state = State::new(files.clone(), own, delivered, clock);
        let mut files = Follower::new(files);
        let (bundle, faults) = state.begin(files.begin()).map_err(TrustError::Fault)?;
        let (bundles, bundles_out) = watch::channel(Arc::new(bundle));
        let (faults_in, faults_out) = watch::channel(Arc::default());
        let mut publisher = Self { files, state, bundles, faults: faults_in };
        publisher.say(&faults);
        Ok((publisher, bundles_out, faults_out))
    }

    /// Returns where to send what the CA delivers.
    pub(super) fn messages(&self) -> Messages<Delivered> {
        self.files.messages()
    }

    pub(super) fn run(mut self) {
        loop {
            match self.files.wait() {
                News::Changed(contents) => self.state.take(contents),
                // Time passes: a list may be out of date now.
                News::Unchanged => {}
                News::Message(delivered) => self.state.deliver(delivered),
                News::Closed => return,
            }
            self.publish();
        }
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
