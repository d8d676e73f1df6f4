//! A pod as the workers serve it: until it goes, from when on nothing of this agent may be in its namespace.

use std::{future::Future, io, ops::Deref, sync::Arc};

use sluice_pods::LocalPod;
use sluice_sys::nomad;

use crate::{retirement::Retirement, stats::PodStats};

/// An enrolment of a pod.
#[derive(Debug)]
pub(crate) struct Pod {
    local: Arc<LocalPod>,
    pub(crate) stats: Arc<PodStats>,
    /// Shared by all enrolments of the pod between its coming and its going.
    departure: Arc<Retirement>,
}

/// Why there is nothing to be done for a pod any more.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the pod has gone, or has left the mesh")]
pub(crate) struct Gone;

// === impl Pod ===

impl Pod {
    pub(crate) fn new(
        local: Arc<LocalPod>,
        stats: Arc<PodStats>,
        departure: Arc<Retirement>,
    ) -> Self {
        Self { local, stats, departure }
    }

    /// Moves the calling thread into the pod's namespace. A worker hears of a departure in turn with its connections,
    /// and leaves the namespace then: what was let in before cannot come after.
    ///
    /// # Errors
    ///
    /// When the pod has gone, whose namespace would stay for as long as the thread does.
    pub(crate) fn enter(&self) -> io::Result<()> {
        if self.has_gone() {
            return Err(io::Error::other(Gone));
        }
        nomad::enter(&self.netns).map_err(io::Error::other)
    }

    pub(crate) fn has_gone(&self) -> bool {
        self.departure.has_begun()
    }

    /// Returns once the pod has gone.
    pub(crate) async fn gone(&self) {
        self.departure.begun().await;
    }

    /// Does `work` as long as the pod is there.
    pub(crate) async fn while_there<T>(
        &self,
        work: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        tokio::select! {
            outcome = work => outcome,
            () = self.gone() => Err(io::Error::other(Gone)),
        }
    }
}

impl Deref for Pod {
    type Target = LocalPod;

    fn deref(&self) -> &LocalPod {
        &self.local
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::local_pod;

    #[tokio::test]
    async fn of_a_pod_that_has_gone_nothing_is_waited_for_and_nobody_enters_its_namespace() {
        let pod = Pod::new(Arc::new(local_pod()), Arc::default(), Arc::default());
        assert_eq!(pod.while_there(async { Ok(1) }).await.unwrap(), 1);
        let endless = pod.while_there(std::future::pending::<io::Result<()>>());
        let goes = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            pod.departure.begin();
        };
        let (ended, ()) = tokio::join!(endless, goes);
        for outcome in [ended, pod.enter()] {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains("has gone"), "{error}");
        }
    }
}
