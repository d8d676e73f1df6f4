//! Checks whether every captured pod still is captured, by the kernel's state and not the agent's
//! memory.

use std::{fs, io, os::fd::AsFd, os::unix::fs::MetadataExt};

use sluice_kernel::CaptureState;
use sluice_mesh::WorkloadUid;
use sluice_sys::{NetnsId, veth};

use super::PodManager;
use crate::{Departure, Hooks, LocalPod, PodEvent, enrol, record::Captured};

/// The result of auditing a captured pod.
pub(super) enum Finding {
    Sound,
    /// The namespace is no longer the pod's.
    Departed(Departure),
    /// Something about it is missing or has changed, and enrolling anew puts that right.
    Amiss(String),
    /// Something is wrong that enrolling anew cannot put right.
    Faulty(String),
}

impl<H: Hooks> PodManager<H> {
    /// Compares every captured pod with the kernel, mends what can be mended, and retries what
    /// failed before and is due. Call it every ten seconds or so.
    pub fn audit(&mut self) -> Vec<PodEvent> {
        if self.frozen {
            return Vec::new();
        }
        self.mend_node();
        self.retry_unwanted();
        self.locate_all();
        let uids: Vec<_> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.audit_pod(&uid);
        }
        self.enrol_due();
        self.exempt_changed();
        self.set_peers();
        self.set_direct();
        self.hand_over();
        self.retire_predecessors();
        self.take_events()
    }

    /// Attaches the node's own hooks again if one was taken away: without them no pod is captured.
    fn mend_node(&self) {
        let missing = match self.hooks.missing_hooks() {
            Ok(missing) => missing.join(", "),
            Err(error) => {
                return tracing::error!(%error, "whether the node's hooks are attached is unknown");
            }
        };
        if missing.is_empty() {
            return;
        }
        match self.hooks.reattach() {
            Ok(()) => tracing::warn!(
                hooks = missing,
                "hooks of the node had been detached by somebody, and are attached again"
            ),
            Err(error) => {
                tracing::error!(%error, hooks = missing, "hooks of the node are detached");
            }
        }
    }

    pub(super) fn audit_pod(&mut self, uid: &WorkloadUid) {
        let Some(captured) = self.captured(uid) else { return };
        match self.examine(captured) {
            Finding::Sound => self.sound(uid),
            Finding::Departed(departure) => self.withdraw(uid, departure),
            Finding::Amiss(found) => match self.attempt(uid) {
                Ok(enrolment) => self.enrolled(uid, enrolment, Some(found)),
                Err(refusal) => self.troubled(uid, format!("{found}; {refusal}")),
            },
            Finding::Faulty(reason) => self.troubled(uid, reason),
        }
    }

    /// Clears what was wrong before, unless a new declaration could not be met.
    fn sound(&mut self, uid: &WorkloadUid) {
        if let Some(record) = self.pods.get_mut(uid)
            && record.captured.as_ref().is_some_and(|captured| captured.declared == record.declared)
            && !record.is_exempt_otherwise()
        {
            record.trouble = None;
        }
    }

    pub(super) fn examine(&self, captured: &Captured) -> Finding {
        let pod = &captured.pod;
        match self.namespace_at(captured) {
            Ok(Some(id)) if id == pod.netns.id() => {}
            Ok(Some(_)) => return Finding::Departed(Departure::NamespaceReplaced),
            // A pod without a path may have no process for a while, in a back-off or between two containers, and
            // still have its sandbox: CRI-O has no process of its own in it. What it cannot have without is its links.
            Ok(None) if captured.declared.netns.is_none() => match has_link(pod) {
                Ok(true) => {}
                Ok(false) => return Finding::Departed(Departure::NamespaceGone),
                Err(error) => return Finding::Faulty(error.to_string()),
            },
            Ok(None) => return Finding::Departed(Departure::NamespaceGone),
            Err(error) => return Finding::Faulty(format!("its namespace cannot be seen: {error}")),
        }
        self.examine_hooks(captured)
    }

    /// Examines everything about a captured pod that does not depend on where its namespace is.
    pub(super) fn examine_hooks(&self, captured: &Captured) -> Finding {
        let pod = &captured.pod;
        match enrol::guard_ifindexes(&pod.netns) {
            Ok(present) if present == pod.guard_ifindexes => {}
            Ok(_) => return Finding::Amiss("its veth pairs have changed".to_owned()),
            Err(error) => return Finding::Faulty(error.to_string()),
        }
        match self.hooks.audit(pod.cookie, pod.netns.as_fd()) {
            Ok(state) => judge(&state, captured),
            Err(error) => Finding::Faulty(error.to_string()),
        }
    }

    /// Returns the namespace where the pod is now, by the path that it was enrolled by or by its
    /// processes. While we hold the old namespace open, no new one can get its number.
    fn namespace_at(&self, captured: &Captured) -> Result<Option<NetnsId>, String> {
        let Some(path) = &captured.declared.netns else {
            let located =
                self.located.of(&captured.declared).map_err(|refusal| refusal.to_string())?;
            return Ok(located.map(|netns| netns.id()));
        };
        match fs::metadata(path) {
            Ok(found) => Ok(Some(NetnsId { device: found.dev(), inode: found.ino() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Whether the node still has one of the interfaces by which a pod was guarded. Judged from here, because what is in
/// the pod's namespace may be changed by the pod.
fn has_link(pod: &LocalPod) -> sluice_sys::Result<bool> {
    for ifindex in &pod.guard_ifindexes {
        if veth::is_here(*ifindex)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The node-wide hooks come first: a pod that is enrolled anew would be no better off without them.
fn judge(state: &CaptureState, captured: &Captured) -> Finding {
    if !state.missing_hooks.is_empty() {
        let hooks = state.missing_hooks.join(", ");
        return Finding::Faulty(format!(
            "hooks of the node are detached: {hooks}; the agent's log says why they stay so"
        ));
    }
    let attached =
        |index: &&u32| state.guards.iter().any(|guard| guard.ifindex == **index && guard.attached);
    let mut missing = Vec::new();
    if !state.enrolled {
        missing.push("its entry in the table of pods is missing".to_owned());
    }
    if !state.inbound {
        missing.push("the inbound hook of its namespace is detached".to_owned());
    }
    let unguarded = captured.pod.guard_ifindexes.iter().filter(|index| !attached(index));
    missing.extend(unguarded.map(|index| format!("the guard on interface {index} is detached")));
    let unprobed = state.unprobed.iter();
    missing.extend(unprobed.map(|index| format!("probes on interface {index} go unrecognised")));
    if missing.is_empty() && captured.is_half_renewed {
        missing.push("enrolling it anew had failed half way".to_owned());
    }
    if missing.is_empty() { Finding::Sound } else { Finding::Amiss(missing.join(", ")) }
}
