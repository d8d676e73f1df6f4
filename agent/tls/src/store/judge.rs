//! Judging peers again, later than their handshake.

use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_spiffe::SpiffeId;

use super::CertStore;
use crate::{
    identity::{Identity, Peer},
    presented::validity,
    verify::{self, VerifyError},
};

impl CertStore {
    /// The time that all expiry is judged by.
    pub fn now(&self) -> UnixTime {
        self.shared.clock.now()
    }

    /// Whether `peer` would still be accepted, to be asked before each use of a connection: it can outlive
    /// its certificates, their root and the operator's patience. So can `own`, the identity that we use it
    /// with. Costs nothing as long as neither trust nor dates changed.
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
        verify::verify_in_any_role(&trust.bundle, &peer.chain, now)?;
        peer.generation = trust.generation;
        Ok(())
    }

    /// Whether a connection to `peer` may serve again: `own` is still the certificate that it was made
    /// with, and the peer's is not so old that it must have another. Whoever keeps connections longer keeps
    /// both ends' old certificates in use, until taking a root away breaks them.
    pub fn may_reuse(&self, peer: &Peer, own: &Identity) -> bool {
        peer.shown == own.number() && self.shared.clock.now() < peer.reuse_until
    }

    /// Whether the chain of a live connection is still vouched for. Its dates do not count, because a
    /// connection may be open for longer than certificates live.
    pub fn still_vouched(&self, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, VerifyError> {
        let trust = self.shared.trust.load();
        let (first, last) = validity(chain)?;
        let when = self.shared.clock.now().max(first).min(last);
        verify::verify_in_any_role(&trust.bundle, chain, when)
    }
}
