//! Judges peers again after their handshake.

use std::collections::BTreeSet;

use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_spiffe::SpiffeId;

use super::CertStore;
use crate::{
    identity::{Identity, Peer},
    verify::{self, VerifyError},
};

impl CertStore {
    /// Returns the time by which all expiry is judged.
    pub fn now(&self) -> UnixTime {
        self.shared.clock.now()
    }

    /// Checks that `peer` would still be accepted, and that `own`, the identity that we use the connection with, is not
    /// denied. Must be called before each use of a connection: it can outlive the peer's certificates, their root and
    /// the operator's consent. Costs nothing as long as trust has not changed and the certificates are valid.
    pub fn confirm(&self, peer: &mut Peer, own: &SpiffeId) -> Result<(), VerifyError> {
        let trust = self.shared.trust.load();
        let now = self.shared.clock.now();
        let (first, last) = peer.valid;
        if peer.generation == trust.generation && first <= now && now <= last {
            return Ok(());
        }
        if trust.bundle.revocations().denied().denies(own) {
            return Err(VerifyError::Denied { id: own.clone() });
        }
        let verified = verify::verify_in_any_role(&trust.bundle, &peer.chain, now)?;
        if !self.believes(own, &verified.svid.id) {
            let local = trust.bundle.local().clone();
            return Err(VerifyError::ForeignDomain { id: verified.svid.id, local });
        }
        peer.valid = verified.valid;
        peer.generation = trust.generation;
        Ok(())
    }

    /// Whether the local identity `own` believes anybody of the trust domain of `peer`: not every one
    /// federates with all that are known.
    pub fn believes(&self, own: &SpiffeId, peer: &SpiffeId) -> bool {
        let entry = self.shared.entries.load().get(own).cloned();
        let identity = entry.and_then(|entry| entry.current());
        let none = BTreeSet::new();
        let named = identity.as_ref().map_or(&none, |identity| identity.federates_with());
        self.shared.trust.load().bundle.is_for(named, peer.trust_domain())
    }

    /// Whether a connection to `peer` may serve again: `own` is still the certificate that it was made
    /// with, and the peer's is not so old that it must have another. Whoever keeps connections longer keeps
    /// both ends' old certificates in use, until taking a root away breaks them.
    pub fn may_reuse(&self, peer: &Peer, own: &Identity) -> bool {
        peer.shown == own.number() && self.shared.clock.now() < peer.reuse_until
    }

    /// Whether the chain of a live connection is still vouched for. Its dates do not count, because a
    /// connection may be open for longer than certificates live: where they are all that is wrong, it is
    /// judged by the nearest moment at which the certificate in question was valid.
    pub fn still_vouched(&self, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
        let trust = self.shared.trust.load();
        let judge = |when| verify::verify_in_any_role(&trust.bundle, chain, when);
        let mut outcome = judge(self.shared.clock.now());
        // Each certificate of a path may have ended before the one below it.
        for _ in chain {
            let Some(when) = outcome.as_ref().err().and_then(nearest_valid) else { break };
            outcome = judge(when);
        }
        Ok(outcome?.svid.id)
    }
}

/// The moment nearest to the one that was used at which the certificate that failed by its dates was valid.
fn nearest_valid(error: &VerifyError) -> Option<UnixTime> {
    let VerifyError::Path { source, .. } = error else { return None };
    if let webpki::Error::CertExpired { not_after, .. } = source {
        return Some(*not_after);
    }
    if let webpki::Error::CertNotValidYet { not_before, .. } = source {
        return Some(*not_before);
    }
    None
}
