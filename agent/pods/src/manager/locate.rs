//! Decides when to search for namespaces that the mesh does not name.

use std::{path::PathBuf, time::Instant};

use super::PodManager;
use crate::{Hooks, located::Located, record::Record};

impl<H: Hooks> PodManager<H> {
    /// Sets the process list to search instead of `/proc`, which an agent in a container needs.
    #[must_use]
    pub fn with_processes(mut self, proc: PathBuf) -> Self {
        self.processes = proc;
        self
    }

    /// Searches for every pod that is to be enrolled now and has no path.
    pub(super) fn locate_due(&mut self) {
        let now = Instant::now();
        self.locate(|record| record.is_due(now));
    }

    /// Searches for the pods that are due, and for captured ones, to learn whether they still are
    /// where they were.
    pub(super) fn locate_all(&mut self) {
        let now = Instant::now();
        self.locate(|record| record.captured.is_some() || record.is_due(now));
    }

    fn locate(&mut self, wanted: impl Fn(&Record) -> bool) {
        let nameless = |record: &&Record| record.declared.netns.is_none() && wanted(record);
        let pods: Vec<_> = self.pods.values().filter(nameless).collect();
        self.located = Located::among(&self.processes, &pods);
    }
}
