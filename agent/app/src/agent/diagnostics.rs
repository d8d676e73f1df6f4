//! Passes the kernel programs' own diagnostics on to the log.
//!
//! They are off unless `SLUICE_LOG` (or `logLevel`) asks for `sluice_kernel=debug`. While off they cost nothing: what
//! is above the level is removed when the programs are loaded.

use std::{sync::Arc, time::Duration};

use sluice_kernel::Datapath;

/// How often the ring buffer is drained: often enough for a person who watches.
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
