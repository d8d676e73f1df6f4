//! Passes the kernel programs' own diagnostics on to the log.
//!
//! They are off unless `SLUICE_LOG` (or `logLevel`) asks for `sluice_kernel=debug`, and then cost the
//! programs nothing: what is above the level is removed when they are loaded.

use std::{sync::Arc, time::Duration};

use sluice_kernel::Datapath;

/// Often enough for a person who watches; the ring buffer holds what comes in between.
const INTERVAL: Duration = Duration::from_millis(250);

/// Runs until it is dropped; returns at once when there is no ring buffer.
pub(super) async fn pass_on(datapath: Arc<Datapath>) {
    let mut diagnostics = match datapath.diagnostics() {
        Ok(Some(diagnostics)) => diagnostics,
        Ok(None) => return,
        Err(error) => {
            return tracing::warn!(%error, "the kernel programs' diagnostics cannot be read");
        }
    };
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        tick.tick().await;
        diagnostics.drain();
    }
}
