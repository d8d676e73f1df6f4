//! The chains that peers present, each read once and held once.
//!
//! A pod's peers are few beside their connections. Connections to one peer share its chain, and a
//! resumed session costs no parsing. What is remembered follows from the bytes alone: whether a chain
//! is trusted is asked elsewhere, every time.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_spiffe::SpiffeId;

use crate::svid::{self, SvidError};

/// Chains that are remembered, each about 1 KiB.
const MAX_CHAINS: usize = 256;

/// What a chain says.
#[derive(Clone)]
pub(crate) struct Presented {
    pub(crate) id: SpiffeId,
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// Between which moments every certificate of the chain is valid.
    pub(crate) valid: (UnixTime, UnixTime),
}

/// The chains that were presented lately, by their hash under a key that no peer knows.
#[derive(Default)]
pub(crate) struct Chains {
    hasher: RandomState,
    known: Mutex<HashMap<u64, Presented>>,
}

// === impl Chains ===

impl Chains {
    /// Reads `chain`, leaf first.
    pub(crate) fn read(&self, chain: &[CertificateDer<'static>]) -> Result<Presented, SvidError> {
        let hash = self.hasher.hash_one(chain);
        // No code that can panic runs under the lock; what it guards is only a cache.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(presented) = known.get(&hash).filter(|known| *known.chain == *chain) {
            return Ok(presented.clone());
        }
        let presented = Presented {
            id: svid::peer_identity(chain)?,
            chain: chain.into(),
            valid: validity(chain)?,
        };
        if known.len() >= MAX_CHAINS {
            known.retain(|_, presented| Arc::strong_count(&presented.chain) > 1);
        }
        if known.len() < MAX_CHAINS {
            known.insert(hash, presented.clone());
        }
        Ok(presented)
    }
}

/// Between which moments every certificate of `chain` is valid.
pub(crate) fn validity(chain: &[CertificateDer<'_>]) -> Result<(UnixTime, UnixTime), SvidError> {
    let forever = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    let mut valid = (UnixTime::since_unix_epoch(Duration::ZERO), forever);
    for certificate in chain {
        let certificate = svid::parse(certificate)?;
        let validity = certificate.validity();
        valid.0 = valid.0.max(svid::unix(validity.not_before));
        valid.1 = valid.1.min(svid::unix(validity.not_after));
    }
    Ok(valid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Authority, WEB};

    fn leaf(root: &Authority) -> Vec<CertificateDer<'static>> {
        root.leaf(WEB).chain
    }

    #[test]
    fn equal_chains_are_one_and_others_are_not() {
        let (chains, root) = (Chains::default(), Authority::root("root"));
        let [first, second] = [leaf(&root), leaf(&root)];
        let web = chains.read(&first).unwrap();
        assert_eq!(web.id.as_str(), WEB);
        assert!(Arc::ptr_eq(&web.chain, &chains.read(&first.clone()).unwrap().chain));
        assert!(!Arc::ptr_eq(&web.chain, &chains.read(&second).unwrap().chain));
        assert!(chains.read(&[]).is_err());
    }

    #[test]
    fn chains_are_bounded_and_those_in_use_stay_one() {
        let (chains, root) = (Chains::default(), Authority::root("root"));
        let held = chains.read(&leaf(&root)).unwrap();
        for _ in 0..=MAX_CHAINS {
            chains.read(&leaf(&root)).unwrap();
        }
        assert!(chains.known.lock().unwrap().len() <= MAX_CHAINS);
        assert!(Arc::ptr_eq(&held.chain, &chains.read(&held.chain).unwrap().chain));
    }
}
