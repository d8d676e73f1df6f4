//! Decides whether a pod that is being added belongs to the mesh, by asking whoever knows the mesh's state.

use std::{fs, os::unix::fs::MetadataExt, path::Path, pin::Pin, sync::Arc};

use sluice_cni::protocol::Attachment;
use sluice_mesh::{Workload, WorkloadUid};
use sluice_proxy::Shared;

/// Whether a pod that is being added belongs to the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The mesh wants it captured, under this name.
    Enrolled(WorkloadUid),
    /// The mesh leaves it alone.
    Outside,
}

/// A pending decision, or why there is none yet.
pub(crate) type Deciding<'a> = Pin<Box<dyn Future<Output = Result<Decision, String>> + Send + 'a>>;

/// A source of the mesh's state that can be told of pods before it hears of them by itself.
pub(crate) trait Announce: Send + Sync + 'static {
    /// Decides about a pod that is being added, with its network namespace and addresses. May be called again for the
    /// same pod, and then decides anew.
    fn announce<'a>(&'a self, attachment: &'a Attachment) -> Deciding<'a>;

    /// Forgets the pod, whose sandbox has ended.
    fn withdraw(&self, uid: &WorkloadUid);
}

/// Decides by the mesh file, which says itself where its pods are.
pub(crate) struct FilePods {
    shared: Arc<Shared>,
    node: String,
}

// === impl FilePods ===

impl FilePods {
    pub(crate) fn new(shared: Arc<Shared>, node: String) -> Self {
        Self { shared, node }
    }

    fn decide(&self, attachment: &Attachment) -> Result<Decision, String> {
        let snapshot = self.shared.snapshot();
        let here = |workload: &&Workload| workload.node == self.node;
        let pods = || snapshot.members().iter().map(|member| &*member.workload).filter(here);
        let pod = pods()
            .find(|pod| is_at(pod, attachment.netns.as_deref()))
            .or_else(|| pods().find(|pod| pod.netns.is_none() && is_named(pod, attachment)));
        match pod {
            Some(pod) if pod.in_mesh => Ok(Decision::Enrolled(pod.uid.clone())),
            Some(_) => Ok(Decision::Outside),
            None => Err(format!(
                "the mesh file lists no pod of node {} with this network namespace; list it, with or \
                 without the label that enrols",
                self.node
            )),
        }
    }
}

impl Announce for FilePods {
    fn announce<'a>(&'a self, attachment: &'a Attachment) -> Deciding<'a> {
        Box::pin(async { self.decide(attachment) })
    }

    /// Does nothing: the file goes on listing the pod until somebody changes it.
    fn withdraw(&self, _uid: &WorkloadUid) {}
}

/// Returns whether `netns` leads to the pod's declared namespace, however the two paths are spelt.
fn is_at(pod: &Workload, netns: Option<&Path>) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let (Some(declared), Some(netns)) = (pod.netns.as_deref(), netns) else { return false };
    declared == netns || identity(netns).is_some_and(|found| identity(declared) == Some(found))
}

fn is_named(pod: &Workload, attachment: &Attachment) -> bool {
    attachment
        .pod
        .as_ref()
        .is_some_and(|named| named.name == pod.name && named.namespace == pod.account.namespace)
}
