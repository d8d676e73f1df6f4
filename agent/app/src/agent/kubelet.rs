//! Keeps telling the kernel who the kubelet is, because pods take its probes in plaintext.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sluice_kernel::{Datapath, Kubelet};
use sluice_sys::kubelet;
use tokio::sync::watch;

use super::handover::Stage;

/// How often the kubelet is looked for: a restarted one is recognised again within this time.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long the kubelet's process ID is trusted while no agent is there to check it.
const BELIEVED_FOR: Duration = Duration::from_mins(5);
/// The name of the kubelet's process.
const NAME: &str = "kubelet";

/// Where to look for the kubelet.
pub(super) struct Places {
    /// The node's process list.
    pub(super) proc: PathBuf,
    /// The root of cgroup v2.
    pub(super) cgroups: PathBuf,
    /// The kubelet's cgroup, if the configuration names it.
    pub(super) named: Option<PathBuf>,
}

/// Follows the kubelet for as long as the agent serves the node.
pub(super) async fn follow(
    places: Places,
    datapath: Arc<Datapath>,
    stages: watch::Receiver<Stage>,
) {
    let mut found = None;
    let mut said = Said::default();
    let places = Arc::new(places);
    let mut turn = tokio::time::interval(INTERVAL);
    loop {
        turn.tick().await;
        if *stages.borrow() >= Stage::Frozen {
            continue;
        }
        let (places, datapath, before) = (Arc::clone(&places), Arc::clone(&datapath), found.take());
        // Off the runtime's thread, because reading the process list waits for the kernel.
        let looked = tokio::task::spawn_blocking(move || {
            let (found, kubelet) = look(&places, before);
            let told = kubelet.as_ref().ok().copied();
            let outcome = datapath.set_kubelet(told);
            (found, kubelet, outcome)
        })
        .await;
        match looked {
            Ok((now, kubelet, outcome)) => {
                found = now;
                if let Err(error) = outcome {
                    tracing::error!(%error, "the kernel was not told who the kubelet is");
                }
                said.say(kubelet);
            }
            Err(error) => tracing::error!(%error, "BUG: looking for the kubelet panicked"),
        }
    }
}

/// Returns the kubelet's process, if it was searched for, and how to recognise it or why that is impossible.
fn look(
    places: &Places,
    before: Option<kubelet::Kubelet>,
) -> (Option<kubelet::Kubelet>, Result<Kubelet, String>) {
    if let Some(named) = &places.named {
        return (None, cgroup(named));
    }
    let found = match before.filter(|before| kubelet::is_still_there(&places.proc, before)) {
        Some(still) => Ok(Some(still)),
        None => kubelet::find(&places.proc, NAME),
    };
    match found {
        Ok(Some(found)) => {
            let kubelet = recognisable(places, &found);
            (Some(found), kubelet)
        }
        Ok(None) => (None, Err(format!("no process {NAME:?} in {}", places.proc.display()))),
        Err(error) => (None, Err(error.to_string())),
    }
}

/// Returns how the kernel can recognise the kubelet that was found.
fn recognisable(places: &Places, found: &kubelet::Kubelet) -> Result<Kubelet, String> {
    match &found.cgroup {
        Some(path) if found.has_own_cgroup => {
            cgroup(&places.cgroups.join(path.strip_prefix("/").unwrap_or(path)))
        }
        _ if found.is_initial => {
            Ok(Kubelet::Process { id: found.process, believed_for: BELIEVED_FOR })
        }
        _ => {
            Err("it shares its cgroup, and its PID namespace is not the machine's first: give it \
                  a cgroup of its own"
                .to_owned())
        }
    }
}

fn cgroup(path: &Path) -> Result<Kubelet, String> {
    let id = std::fs::metadata(path).map(|cgroup| Kubelet::Cgroup(cgroup.ino()));
    id.map_err(|error| format!("its cgroup {} cannot be found: {error}", path.display()))
}

/// What was last logged about the kubelet; only changes are logged.
#[derive(Default)]
struct Said(Option<Result<Kubelet, String>>);

impl Said {
    fn say(&mut self, now: Result<Kubelet, String>) {
        if self.0.as_ref() == Some(&now) {
            return;
        }
        match &now {
            Ok(kubelet) => tracing::info!(?kubelet, "kubelet found: its probes are let through"),
            Err(reason) => tracing::warn!(
                reason,
                "no kubelet: probes of STRICT pods are refused; name its cgroup in the \
                 configuration (`kubelet.cgroup`)"
            ),
        }
        self.0 = Some(now);
    }
}
