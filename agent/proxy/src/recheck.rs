//! Ends the open connections that a new state of the mesh, or of trust, no longer allows.

use std::collections::HashMap;

use sluice_mesh::Snapshot;
use sluice_policy::{Connection, Verdict};
use sluice_wire::ResetReason;

use crate::{
    live::{Direction, Facts, Proof, Transport},
    shared::Shared,
};

impl Shared {
    /// Judges every open connection by the snapshot in force and cuts those that it does not allow. Returns how many
    /// were cut. To be called after the snapshot was replaced: a connection is listed before it is judged, so this
    /// finds each one that was judged by the old snapshot.
    pub fn recheck(&self) -> usize {
        let snapshot = self.snapshot();
        let refused =
            self.live.all().into_iter().filter(|live| !is_allowed(&snapshot, &live.facts));
        refused.map(|live| live.cut(ResetReason::PolicyChanged)).count()
    }

    /// Judges both ends of every open mesh connection by the trust in force and cuts those that it no longer accepts.
    /// Returns how many were cut. To be called after trust was replaced: a connection notes its certificates before
    /// it asks for current trust, so this finds each one that was judged by the old trust.
    pub fn recheck_trust(&self) -> usize {
        // Thousands of connections rest on a few dozen certificates: each chain is judged once.
        let mut judged: HashMap<Proof, bool> = HashMap::new();
        let trust = self.certificates.roots();
        let denied = trust.revocations().denied();
        let mut cut = 0;
        for live in self.live.all() {
            let facts = &live.facts;
            if facts.transport != Transport::MutualTls {
                continue;
            }
            let ends = [&facts.source_identity, &facts.destination_identity];
            let is_denied = ends.into_iter().flatten().any(|identity| denied.denies(identity));
            let is_vouched = live.proof().is_none_or(|proof| {
                *judged
                    .entry(proof)
                    .or_insert_with_key(|proof| self.certificates.still_vouched(proof).is_ok())
            });
            let (own, peer) = match facts.direction {
                Direction::Outbound => (&facts.source_identity, &facts.destination_identity),
                Direction::Inbound => (&facts.destination_identity, &facts.source_identity),
            };
            let both = own.as_ref().zip(peer.as_ref());
            let is_foreign = both.is_some_and(|(own, peer)| !self.certificates.believes(own, peer));
            if is_denied || is_foreign || !is_vouched {
                live.cut(ResetReason::Revoked);
                cut += 1;
            }
        }
        cut
    }
}

/// Returns whether the snapshot allows the connection. Policy binds at the server's side only. A connection of a pod
/// that is no longer in the snapshot is not allowed.
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
