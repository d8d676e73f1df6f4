//! The control loop: whatever the source says becomes true, and is looked after.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sluice_kernel::Datapath;
use sluice_kube::{Capture, Reports};
use sluice_mesh::Snapshot;
use sluice_pods::{PodManager, PodState};
use sluice_proxy::Shared;
use sluice_spiffe::SpiffeId;
use tokio::sync::watch;

/// How often the kernel is asked whether every pod is still captured.
const AUDIT_INTERVAL: Duration = Duration::from_secs(10);

/// The pods of this node, as the real kernel has them.
pub(super) type Pods = PodManager<Arc<Datapath>>;

/// What the loop moves.
pub(super) struct Control {
    node: String,
    shared: Arc<Shared>,
    pods: Arc<Mutex<Pods>>,
    datapath: Arc<Datapath>,
    /// Whether what an earlier version of the agent left is still to be taken down.
    has_predecessors: bool,
    /// Identities that certificates are kept for.
    wanted: HashSet<SpiffeId>,
    /// Counts what has been carried out: states of the mesh first, then audits too.
    turns: watch::Sender<u64>,
    /// Where what became of the node's pods is told.
    reports: Option<Reports>,
}

// === impl Control ===

impl Control {
    pub(super) fn new(
        node: String,
        shared: Arc<Shared>,
        pods: Arc<Mutex<Pods>>,
        datapath: Arc<Datapath>,
    ) -> Self {
        let turns = watch::Sender::new(0);
        let wanted = HashSet::new();
        let has_predecessors = true;
        Self { node, shared, pods, datapath, has_predecessors, wanted, turns, reports: None }
    }

    /// Has what became of the node's pods told to their owners.
    pub(super) fn telling(self, reports: Option<Reports>) -> Self {
        Self { reports, ..self }
    }

    /// Counts the states of the mesh that are in force, and the audits after the first of them.
    pub(super) fn turns(&self) -> watch::Receiver<u64> {
        self.turns.subscribe()
    }

    /// Runs until the source is gone.
    pub(super) async fn run(mut self, mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>) {
        let mut audit = tokio::time::interval(AUDIT_INTERVAL);
        loop {
            tokio::select! {
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let snapshot = snapshots.borrow_and_update().clone();
                    if let Some(snapshot) = snapshot {
                        self.apply(snapshot).await;
                    }
                }
                _ = audit.tick() => {
                    self.blocking(Pods::audit).await;
                    self.tell().await;
                    self.turns.send_if_modified(|turns| *turns > 0 && { *turns += 1; true });
                }
            }
        }
    }

    /// Policy first, so that nothing new is let in by the old one; then certificates, so that they
    /// are there when the pod is; then capture.
    async fn apply(&mut self, snapshot: Arc<Snapshot>) {
        self.shared.set_snapshot(Arc::clone(&snapshot));
        let cut = self.shared.recheck();
        let wanted = self.identities(&snapshot);
        for identity in wanted.difference(&self.wanted) {
            self.shared.certificates.want(identity);
        }
        let node = self.node.clone();
        let current = Arc::clone(&snapshot);
        self.blocking(move |pods| pods.reconcile(&current, &node)).await;
        for identity in self.wanted.difference(&wanted) {
            self.shared.certificates.forget(identity);
        }
        self.wanted = wanted;
        if std::mem::take(&mut self.has_predecessors)
            && let Err(error) = self.datapath.retire_predecessors()
        {
            tracing::error!(%error, "taking down what another version of the agent left");
        }
        self.tell().await;
        self.turns.send_modify(|turns| *turns += 1);
        tracing::info!(
            pods = snapshot.members().len(),
            services = snapshot.services().len(),
            connections_cut = cut,
            "state of the mesh applied"
        );
    }

    /// As the kernel has the pods, not as they were asked for.
    async fn tell(&self) {
        let Some(reports) = self.reports.clone() else { return };
        let capture = |state| match state {
            PodState::Captured => Capture::Captured,
            PodState::Impaired { reason } | PodState::Refused { reason } => Capture::Failed(reason),
            _ => Capture::Failed("its state is not known".to_owned()),
        };
        self.blocking(move |pods| {
            let pods = pods.status().into_iter();
            reports.report(pods.map(|pod| (pod.uid, capture(pod.state))).collect());
        })
        .await;
    }

    fn identities(&self, snapshot: &Snapshot) -> HashSet<SpiffeId> {
        let local = snapshot.members().iter().map(|member| &*member.workload);
        let local = local.filter(|workload| workload.in_mesh && workload.node == self.node);
        local.map(|workload| workload.identity.clone()).collect()
    }

    /// Enrolment enters namespaces and waits for the kernel: not on the runtime's own thread.
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
