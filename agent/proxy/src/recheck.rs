//! Ends the open connections that a new state of the mesh no longer allows.

use sluice_mesh::Snapshot;
use sluice_policy::{Connection, Verdict};
use sluice_wire::ResetReason;

use crate::{
    live::{Direction, Facts},
    shared::Shared,
};

impl Shared {
    /// Judges every open connection by the snapshot in force and cuts those that it does not allow;
    /// answers how many that were. To be called after the snapshot was replaced: a connection that
    /// was judged by the old one is listed before it is judged, so none slips between the two.
    pub fn recheck(&self) -> usize {
        let snapshot = self.snapshot();
        let refused =
            self.live.all().into_iter().filter(|live| !is_allowed(&snapshot, &live.facts));
        refused.map(|live| live.cut(ResetReason::PolicyChanged)).count()
    }
}

/// Policy binds at the server's side; a connection of a pod that the mesh forgot is nobody's.
fn is_allowed(snapshot: &Snapshot, facts: &Facts) -> bool {
    let Some(member) = snapshot.member(&facts.pod) else {
        return false;
    };
    if facts.direction == Direction::Outbound {
        return true;
    }
    let connection = Connection {
        principal: facts.source_identity.as_ref(),
        source: facts.source.ip(),
        destination: facts.destination,
    };
    member.policy.decide(&connection) == Verdict::Allow
}
