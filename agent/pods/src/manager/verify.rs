//! One pod on request: checks whether it is captured, and tries it now rather than when it is due.

use sluice_mesh::WorkloadUid;
use sluice_sys::NetnsId;

use super::{PodManager, audit::Finding};
use crate::{Hooks, PodEvent};

/// Whether a pod is captured, according to the kernel at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Wholly captured, in this namespace.
    Captured(NetnsId),
    /// Not captured, and why, if that is known yet.
    NotCaptured(Option<String>),
    /// Captured before, but what the kernel has now does not make a whole capture.
    Amiss(String),
    /// The mesh does not want it captured on this node, or does not know of it yet.
    Undeclared,
}

impl<H: Hooks> PodManager<H> {
    /// Asks the kernel about one pod.
    pub fn verify(&self, uid: &WorkloadUid) -> Verdict {
        let Some(record) = self.pods.get(uid) else { return Verdict::Undeclared };
        let Some(captured) = &record.captured else {
            let reason = record.trouble.as_ref().map(|trouble| trouble.reason.clone());
            return Verdict::NotCaptured(reason);
        };
        // The namespace of a pod without a path is not checked: it has just been found, or the next
        // audit searches for it again.
        let found = match &record.declared.netns {
            Some(_) => self.examine(captured),
            None => self.examine_hooks(captured),
        };
        match found {
            Finding::Sound => Verdict::Captured(captured.pod.netns.id()),
            Finding::Departed(departure) => Verdict::Amiss(format!("{departure:?}")),
            Finding::Amiss(reason) | Finding::Faulty(reason) => Verdict::Amiss(reason),
        }
    }

    /// Audits one pod and, if it failed before, tries to enrol it without waiting until it is due. For a
    /// pod that has just changed in some way.
    pub fn hasten(&mut self, uid: &WorkloadUid) -> Vec<PodEvent> {
        if !self.frozen
            && let Some(record) = self.pods.get_mut(uid)
        {
            record.trouble = None;
            self.locate_all();
            self.audit_pod(uid);
            self.enrol_due();
            self.set_peers();
            self.hand_over();
        }
        self.take_events()
    }
}
