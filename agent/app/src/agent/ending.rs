//! How an agent goes: what is open may end by itself, for a while.

use std::{sync::Arc, time::Duration};

use sluice_proxy::{Proxy, Shared};
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

use super::handover::Stage;

/// How long an agent that has been superseded goes on accepting: handshakes that began with it take a round
/// trip, and more when a packet is lost.
const LINGER: Duration = Duration::from_secs(2);
/// How long the farewell to idle sessions may take.
const FAREWELL: Duration = Duration::from_millis(500);
const LOOK: Duration = Duration::from_millis(20);

/// Takes nothing new any more once another agent serves the node, and closes `fronts` at once then. Returns when
/// this agent accepts nothing any more.
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

/// Gives what is open time to end. An agent without a successor serves on meanwhile.
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

/// Ends what is still open by a reset, which the peers' agents pass on, and has it logged.
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
