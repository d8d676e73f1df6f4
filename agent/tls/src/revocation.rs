//! Who is no longer believed: authorities' revocation lists, and identities that an operator denies.
//!
//! A list (RFC 5280 section 5) counts for a certificate when it bears the name of the certificate's issuer
//! and that issuer's key signed it. Several authorities may share a name while a root is rotated, so the key
//! decides. A certificate for which there is no list is not revoked.

mod crl;
mod denied;

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, UnixTime};

pub use self::{
    crl::{Crl, CrlError},
    denied::{DenyList, PatternError},
};

/// What happens while a revocation list is past its `nextUpdate`, or cannot be read any more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CrlPolicy {
    /// The last good list stays in force. The operator is warned.
    #[default]
    KeepLastGood,
    /// Nobody is believed whose certificate could be on the list.
    Refuse,
}

/// Everything that makes us refuse a certificate that would otherwise be accepted.
#[derive(Debug, Clone, Default)]
pub struct Revocations {
    policy: CrlPolicy,
    crls: Vec<Held>,
    /// Why a list cannot be read, if not even its issuer is known. With [`CrlPolicy::Refuse`] nobody is believed
    /// meanwhile.
    blind: Option<String>,
    denied: Arc<DenyList>,
}

#[derive(Debug, Clone)]
struct Held {
    crl: Arc<Crl>,
    /// Whether the list should have been replaced by now.
    lapsed: bool,
}

/// Why a certificate on a path is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Withdrawn {
    /// Its issuer revoked it.
    Revoked {
        /// Its serial number, in lower-case hexadecimal.
        serial: String,
    },
    /// Policy refuses it, because nothing current is known about it.
    Unknown {
        /// What is not known.
        reason: String,
    },
}

// === impl Revocations ===

impl Revocations {
    /// Creates revocations without any list.
    pub fn new(policy: CrlPolicy, denied: Arc<DenyList>) -> Self {
        Self { policy, crls: Vec::new(), blind: None, denied }
    }

    /// Adds a list. `lapsed` says that it should have been replaced by now.
    pub fn add(&mut self, crl: Arc<Crl>, lapsed: bool) {
        self.crls.push(Held { crl, lapsed });
    }

    /// Records that a list cannot be read and that its issuer is not known. With [`CrlPolicy::Refuse`] nobody is
    /// believed from then on.
    pub fn blinded(&mut self, reason: String) {
        self.blind = Some(reason);
    }

    /// Returns what happens while a list is out of date.
    pub fn policy(&self) -> CrlPolicy {
        self.policy
    }

    /// Returns the revocation lists.
    pub fn crls(&self) -> impl Iterator<Item = &Crl> {
        self.crls.iter().map(|held| &*held.crl)
    }

    /// Returns the identities that are denied.
    pub fn denied(&self) -> &DenyList {
        &self.denied
    }

    /// Judges one certificate, issued by `issuer`, of a path that is otherwise good.
    pub(crate) fn check(
        &self,
        certificate: &webpki::Cert<'_>,
        issuer: &CertificateDer<'_>,
        now: UnixTime,
    ) -> Result<(), Withdrawn> {
        if let (CrlPolicy::Refuse, Some(reason)) = (self.policy, &self.blind) {
            return Err(Withdrawn::Unknown { reason: reason.clone() });
        }
        for Held { crl, lapsed } in &self.crls {
            if !crl.is_of(certificate.issuer(), issuer) {
                continue;
            }
            if crl.lists(certificate.serial()) {
                let serial = hexadecimal(certificate.serial());
                return Err(Withdrawn::Revoked { serial });
            }
            if self.policy == CrlPolicy::Refuse && (*lapsed || crl.is_expired_at(now)) {
                let reason = format!("the revocation list of {} is out of date", crl.issuer());
                return Err(Withdrawn::Unknown { reason });
            }
        }
        Ok(())
    }
}

impl PartialEq for Revocations {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Held, &Held)| a.crl == b.crl && a.lapsed == b.lapsed;
        self.policy == other.policy
            && self.blind == other.blind
            && self.denied == other.denied
            && self.crls.len() == other.crls.len()
            && self.crls.iter().zip(&other.crls).all(same)
    }
}

impl Eq for Revocations {}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests;
