//! What the manager remembers of one declared pod.

use std::{collections::HashSet, sync::Arc, time::Instant};

use crate::{LocalPod, WorkerListeners, declared::Declared, exempt::Exempt, retry::Retry};

/// A pod that is declared for this node.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) declared: Declared,
    /// The exemptions that it is to have.
    pub(crate) exempt: Exempt,
    /// Cookie of the namespace that it had when its namespace was last opened.
    pub(crate) cookie: Option<u64>,
    pub(crate) captured: Option<Captured>,
    pub(crate) trouble: Option<Trouble>,
}

/// An enrolment in force.
#[derive(Debug)]
pub(crate) struct Captured {
    pub(crate) pod: Arc<LocalPod>,
    /// The pod's declaration when it was enrolled.
    pub(crate) declared: Declared,
    pub(crate) destroyed: usize,
    /// Whether it ran before it was captured.
    pub(crate) was_running: bool,
    /// The exemptions in force; `None` if the hooks did not take what was asked.
    pub(crate) exempt: Option<Exempt>,
    /// Whether enrolling it anew has failed since: how far that went is not known, and no hook shows it.
    pub(crate) is_half_renewed: bool,
    /// What the workers do not have yet, because older connections of the pod are to be destroyed first.
    pub(crate) waiting: Option<Waiting>,
}

/// A pod that was just captured, before the workers serve it.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) listeners: Vec<WorkerListeners>,
    /// Cookies of the sockets that nobody held before the pod was captured. Those that nobody holds now are otherwise
    /// connections that wait in these listeners.
    pub(crate) unowned: HashSet<u64>,
}

/// Why a pod is not as declared.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) reason: String,
    pub(crate) retry: Retry,
}

/// The result of a successful enrolment.
pub(crate) struct Enrolment {
    pub(crate) pod: LocalPod,
    pub(crate) listeners: Vec<WorkerListeners>,
    /// Cookies of the sockets that nobody held before a pod was captured that was not before.
    pub(crate) unowned: HashSet<u64>,
    /// Whether the hooks leave alone what they were asked to.
    pub(crate) exempt: Result<(), sluice_kernel::Error>,
}

// === impl Record ===

impl Record {
    pub(crate) fn new((declared, exempt): (Declared, Exempt)) -> Self {
        Self { declared, exempt, cookie: None, captured: None, trouble: None }
    }

    /// Takes a new declaration in; a change is tried at once, however often the old one failed.
    pub(crate) fn declare(&mut self, (declared, exempt): (Declared, Exempt)) {
        if self.declared != declared || self.exempt != exempt {
            self.declared = declared;
            self.exempt = exempt;
            self.trouble = None;
        }
    }

    /// Whether the pod is captured, but not with the exemptions that it is declared to have.
    pub(crate) fn is_exempt_otherwise(&self) -> bool {
        let in_force = self.captured.as_ref().map(|captured| captured.exempt.as_ref());
        in_force.is_some_and(|in_force| in_force != Some(&self.exempt))
    }

    /// Whether the pod is to be enrolled, and it is time to try.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let as_declared =
            self.captured.as_ref().is_some_and(|captured| captured.declared == self.declared);
        !as_declared && self.trouble.as_ref().is_none_or(|trouble| trouble.retry.is_due(now))
    }

    /// Records what is wrong. Returns true if the reason is new.
    pub(crate) fn fail(&mut self, reason: String, now: Instant) -> bool {
        let previous = self.trouble.take();
        let is_news = previous.as_ref().is_none_or(|trouble| trouble.reason != reason);
        let retry = Retry::after(previous.map(|trouble| trouble.retry), now);
        self.trouble = Some(Trouble { reason, retry });
        is_news
    }
}
