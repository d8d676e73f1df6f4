//! The pods of this node as the mesh declares them.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc};

use sluice_mesh::{Snapshot, Workload, WorkloadUid};
use sluice_spiffe::{SpiffeId, WorkloadName};

use crate::exempt::Exempt;

/// Everything that an enrolment depends on: when any of it changes, the pod is enrolled anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Declared {
    pub(crate) uid: WorkloadUid,
    /// The UID by which the node's processes name it, if that is another one.
    pub(crate) static_uid: Option<Arc<str>>,
    pub(crate) name: String,
    pub(crate) account: WorkloadName,
    pub(crate) identity: SpiffeId,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) netns: Option<PathBuf>,
}

/// Returns the pods that are to be captured on `node`, each with its exemptions.
pub(crate) fn declared_on(
    snapshot: &Snapshot,
    node: &str,
) -> BTreeMap<WorkloadUid, (Declared, Exempt)> {
    let here = |workload: &&Workload| workload.in_mesh && workload.node == node;
    snapshot
        .members()
        .iter()
        .map(|member| &*member.workload)
        .filter(here)
        .map(|workload| (workload.uid.clone(), (Declared::of(workload), Exempt::of(workload))))
        .collect()
}

impl Declared {
    fn of(workload: &Workload) -> Self {
        Self {
            uid: workload.uid.clone(),
            static_uid: workload.static_uid.clone(),
            name: workload.name.clone(),
            account: workload.account.clone(),
            identity: workload.identity.clone(),
            addresses: workload.addresses.clone(),
            netns: workload.netns.clone(),
        }
    }
}
