//! Finds pods by their processes if the mesh does not name their namespaces.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use sluice_mesh::WorkloadUid;
use sluice_sys::{
    Netns,
    pod_processes::{self, Sought},
};

use crate::{declared::Declared, record::Record, refusal::Refusal};

/// The result of one search of the node's processes. It keeps namespaces alive, so it is dropped as soon
/// as the pass that needed it is over.
#[derive(Debug, Default)]
pub(crate) struct Located {
    found: HashMap<WorkloadUid, Netns>,
    /// Why the search failed.
    error: Option<String>,
}

// === impl Located ===

impl Located {
    /// Searches for all of `pods` at once; `proc` is the node's process list.
    pub(crate) fn among(proc: &Path, pods: &[&Record]) -> Self {
        let sought: Vec<_> = pods.iter().map(|record| sought(record)).collect();
        match pod_processes::find(proc, &sought) {
            Ok(mut found) => {
                let uids = pods.iter().map(|record| &record.declared.uid);
                let found = uids.filter_map(|uid| Some((uid.clone(), found.remove(&*uid.0)?)));
                Self { found: found.collect(), error: None }
            }
            Err(error) => Self { found: HashMap::new(), error: Some(error.to_string()) },
        }
    }

    /// Returns the namespace of a pod that was searched for; `None` if no process of the pod is in a
    /// namespace with its addresses.
    pub(crate) fn of(&self, pod: &Declared) -> Result<Option<Netns>, Refusal> {
        match &self.error {
            Some(error) => Err(Refusal::Search(error.clone())),
            None => Ok(self.found.get(&pod.uid).cloned()),
        }
    }
}

fn sought(record: &Record) -> Sought<'_> {
    Sought {
        uid: &record.declared.uid.0,
        static_uid: record.declared.static_uid.as_deref(),
        addresses: &record.declared.addresses,
        known: record.captured.as_ref().map(|captured| captured.pod.netns.id()),
    }
}

/// Returns where the node's processes are listed unless configured otherwise.
pub(crate) fn default_processes() -> PathBuf {
    PathBuf::from("/proc")
}
