//! The end of an agent: open connections get a while to end by themselves.

use std::{sync::Arc, time::Duration};

use sluice_proxy::{Proxy, Shared};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::handover::Stage;

/// How long a superseded agent goes on accepting: handshakes that began with it take a round trip, and more if a packet
/// is lost.
const LINGER: Duration = Duration::from_secs(2);
/// How long idle sessions may take to close, and cut connections to be logged.
const FAREWELL: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(20);

/// Closes `fronts` as soon as another agent serves the node, and stops accepting connections after `LINGER`. Returns
/// when that is done.
pub(super) async fn retire<T>(
    proxy: Arc<Proxy>,
    mut stage: watch::Receiver<Stage>,
    fronts: watch::Sender<Option<T>>,
) {
    if stage.wait_for(|stage| *stage >= Stage::Superseded).await.is_ok() {
        fronts.send_replace(None);
        sleep(LINGER).await;
        proxy.retire();
    }
}

/// Gives open connections up to `patience` to end. Without a successor, the agent goes on serving meanwhile.
pub(super) async fn drain(
    proxy: &Proxy,
    shared: &Shared,
    retired: Option<tokio::task::JoinHandle<()>>,
    patience: Duration,
) {
    let deadline = Instant::now() + patience;
    if let Some(retired) = retired {
        drop(retired.await);
    } else {
        until(deadline, || shared.live.all().is_empty()).await;
        proxy.retire();
    }
    let deadline = deadline.max(Instant::now() + FAREWELL);
    until(deadline, || proxy.connections() == 0).await;
}

/// Resets the connections that are still open, which the peers' agents pass on, and waits until they are logged.
pub(super) async fn cut(proxy: &Proxy, shared: &Shared) {
    let cut = proxy.cut_all();
    until(Instant::now() + FAREWELL, || shared.live.all().is_empty()).await;
    tracing::info!(cut, "stopped");
}

async fn until(deadline: Instant, is_over: impl Fn() -> bool) {
    while !is_over() && Instant::now() < deadline {
        sleep(LOOK).await;
    }
}
