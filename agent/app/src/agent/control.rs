//! The control loop: makes the node what the source says it should be, and keeps it that way.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_kernel::Datapath;
use sluice_kube::{Capture, OwnPod, Reports};
use sluice_mesh::Snapshot;
use sluice_pods::{PodManager, PodState};
use sluice_proxy::Shared;
use sluice_spiffe::SpiffeId;
use tokio::sync::watch;

use super::handover::Stage;
use crate::cni::Departure;

/// How often the kernel is asked whether every pod is still captured.
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);
/// How often an uninstallation that is under way is checked for completion.
const FAREWELL_INTERVAL: Duration = Duration::from_millis(500);

/// The manager of this node's pods, on the real kernel.
pub(super) type Pods = PodManager<Arc<Datapath>>;

/// What is known of the node's pods and their connections, and what changes it.
#[derive(Clone)]
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) pods: Arc<Mutex<Pods>>,
    pub(super) datapath: Arc<Datapath>,
}

/// The control loop and its state.
pub(super) struct Control {
    node: String,
    shared: Arc<Shared>,
    pods: Arc<Mutex<Pods>>,
    datapath: Arc<Datapath>,
    /// Identities that certificates are kept for.
    wanted: HashSet<SpiffeId>,
    /// Counts the applied states of the mesh and, after the first of them, the audits too.
    turns: watch::Sender<u64>,
    /// Where the outcome for the node's pods is reported, if anywhere.
    reports: Option<Reports>,
    farewell: Farewell,
    departure: Arc<Departure>,
}

/// What an uninstallation waits for on this node, and how far it has come.
#[derive(Default)]
pub(super) struct Farewell {
    /// The agent's own pod, where it is reported that nothing is left on the node.
    own_pod: Option<OwnPod>,
    /// Whether the CNI plugin has to be out of the node's network lists first.
    has_plugin: bool,
    is_taken_down: bool,
    is_told: bool,
}

impl Farewell {
    pub(super) fn new(own_pod: Option<OwnPod>, has_plugin: bool) -> Self {
        Self { own_pod, has_plugin, ..Self::default() }
    }
}

/// Why the control loop has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("BUG: the source of the mesh's state ended")]
    NoSource,
    #[error(
        "the uninstallation was called off after everything had been taken down: starting anew takes the pods in again"
    )]
    CalledOff,
}

// === impl Control ===

impl Control {
    /// Creates the loop. `wanted` names the identities for which certificates are kept already.
    pub(super) fn new(node: String, parts: Parts, wanted: HashSet<SpiffeId>) -> Self {
        let Parts { shared, pods, datapath } = parts;
        let turns = watch::Sender::new(0);
        Self {
            node,
            shared,
            pods,
            datapath,
            wanted,
            turns,
            reports: None,
            farewell: Farewell::default(),
            departure: Arc::default(),
        }
    }

    /// Sets where the outcome for the node's pods is reported.
    pub(super) fn telling(self, reports: Option<Reports>) -> Self {
        Self { reports, ..self }
    }

    /// Sets what an uninstallation waits for.
    pub(super) fn leaving(self, farewell: Farewell) -> Self {
        Self { farewell, ..self }
    }

    /// Returns the state of this agent's departure from the node.
    pub(super) fn departure(&self) -> Arc<Departure> {
        Arc::clone(&self.departure)
    }

    /// Returns the count of applied states of the mesh and, after the first of them, of audits.
    pub(super) fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    /// Runs until the source ends, or an uninstallation is called off after everything has been taken down.
    pub(super) async fn run(
        mut self,
        mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        mut stage: watch::Receiver<Stage>,
    ) -> Ended {
        let mut audit = tokio::time::interval(AUDIT_INTERVAL);
        let mut farewell = tokio::time::interval(FAREWELL_INTERVAL);
        loop {
            tokio::select! {
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return Ended::NoSource;
                    }
                    let snapshot = snapshots.borrow_and_update().clone();
                    if let Some(snapshot) = snapshot {
                        if self.farewell.is_taken_down && !snapshot.is_leaving() {
                            return Ended::CalledOff;
                        }
                        self.apply(snapshot).await;
                    }
                }
                _ = audit.tick() => {
                    self.blocking(Pods::audit).await;
                    self.tell().await;
                    self.turns.send_if_modified(|turns| *turns > 0 && { *turns += 1; true });
                }
                _ = farewell.tick(), if self.departure.is_under_way() => self.take_leave().await,
                Ok(()) = stage.changed() => {
                    let stage = *stage.borrow_and_update();
                    if stage >= Stage::Superseded {
                        // What becomes of the pods is the other agent's to tell.
                        self.reports = None;
                    }
                    let snapshot = snapshots.borrow().clone();
                    if let Some(snapshot) = snapshot.filter(|_| stage == Stage::Serving) {
                        // Another agent has failed to take over: what came meanwhile has reached no pod, and what
                        // that one told the kernel is not known.
                        self.apply(snapshot).await;
                    }
                }
            }
        }
    }

    /// Applies a state of the mesh: policy first, or the old one would let in new connections; then certificates, which
    /// a captured pod needs at once; then capture.
    async fn apply(&mut self, snapshot: Arc<Snapshot>) {
        if snapshot.is_leaving() {
            // Leaving goes the other way round: the new state would send what a still captured pod says as plaintext.
            self.reconcile(&snapshot).await;
        }
        self.departure.set_under_way(snapshot.is_leaving());
        self.shared.set_snapshot(Arc::clone(&snapshot));
        let cut = self.shared.recheck();
        let wanted = identities(&snapshot, &self.node);
        for identity in wanted.difference(&self.wanted) {
            self.shared.certificates.want(identity);
        }
        self.reconcile(&snapshot).await;
        for identity in self.wanted.difference(&wanted) {
            self.shared.certificates.forget(identity);
        }
        self.wanted = wanted;
        self.tell().await;
        self.turns.send_modify(|turns| *turns += 1);
        tracing::info!(
            pods = snapshot.members().len(),
            services = snapshot.services().len(),
            connections_cut = cut,
            "state of the mesh applied"
        );
    }

    async fn reconcile(&self, snapshot: &Arc<Snapshot>) {
        let (snapshot, node) = (Arc::clone(snapshot), self.node.clone());
        self.blocking(move |pods| pods.reconcile(&snapshot, &node)).await;
    }

    /// Takes the hooks down once no pod is enrolled, and reports completion once the plugin is out too.
    async fn take_leave(&mut self) {
        if !self.farewell.is_taken_down {
            let enrolled = self.datapath.enrolled();
            if !enrolled.as_ref().is_ok_and(Vec::is_empty) {
                return self.blocking(|pods| drop(pods.audit())).await;
            }
            self.blocking(Pods::freeze).await;
            match self.datapath.take_down() {
                Ok(removed) => {
                    tracing::info!(?removed, "uninstalling: every pod has left the mesh");
                }
                Err(error) => return tracing::error!(%error, "uninstalling: hooks are left"),
            }
            self.farewell.is_taken_down = true;
        }
        let is_out = !self.farewell.has_plugin || self.departure.is_plugin_out();
        if is_out && !std::mem::replace(&mut self.farewell.is_told, true) {
            tracing::info!("uninstalling: nothing is left on this node");
            if let Some(own_pod) = self.farewell.own_pod.clone() {
                tokio::spawn(async move { own_pod.has_left().await });
            }
        }
    }

    /// Reports the pods as the kernel has them, not as the mesh wants them.
    async fn tell(&self) {
        let Some(reports) = self.reports.clone() else { return };
        let capture = |state| match state {
            PodState::Captured => Capture::Captured,
            PodState::Impaired { reason } | PodState::Refused { reason } => Capture::Failed(reason),
            _ => Capture::Failed("its state is not known".to_owned()),
        };
        self.blocking(move |pods| {
            let status = pods.status().into_iter().map(|pod| (pod.uid, capture(pod.state)));
            // These are still captured, whatever the mesh wants.
            let lingering = pods.lingering().map(|uid| (uid.clone(), Capture::Captured));
            reports.report(lingering.chain(status).collect());
        })
        .await;
    }

    /// Runs `work` off the runtime's thread, because enrolment enters namespaces and waits for the kernel.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Pods) -> T + Send + 'static,
    ) {
        let pods = Arc::clone(&self.pods);
        if let Err(error) = tokio::task::spawn_blocking(move || {
            drop(work(&mut pods.lock().unwrap_or_else(PoisonError::into_inner)));
        })
        .await
        {
            tracing::error!(%error, "BUG: enrolment panicked");
        }
    }
}

/// Returns the identities of the node's own pods in the mesh.
pub(super) fn identities(snapshot: &Snapshot, node: &str) -> HashSet<SpiffeId> {
    let local = snapshot.members().iter().map(|member| &*member.workload);
    let local = local.filter(|workload| workload.in_mesh && workload.node == node);
    local.map(|workload| workload.identity.clone()).collect()
}
