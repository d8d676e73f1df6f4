//! The chains that peers present, each held once, and how long each is good for.
//!
//! A pod's peers are few beside their connections. Connections to one peer share its chain, and a
//! resumed session costs no verification as long as the path that was found is within its dates. What is
//! remembered is true for one state of trust: each [`crate::Identity`] has its own, and is replaced when
//! trust changes.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_spiffe::SpiffeId;

use crate::verify::{Verified, VerifyError};

/// Chains that are remembered, each about 1 KiB, and their bytes, which a peer could make many more.
const MAX_CHAINS: usize = 256;
const MAX_LENGTH: usize = 512 * 1024;

/// The contents of a chain.
#[derive(Clone)]
pub(crate) struct Presented {
    pub(crate) id: SpiffeId,
    pub(crate) chain: Arc<[CertificateDer<'static>]>,
    /// Between which moments every certificate of its path is valid.
    pub(crate) valid: (UnixTime, UnixTime),
}

/// The chains that were presented recently, by their hash under a key that no peer knows.
#[derive(Default)]
pub(crate) struct Chains {
    hasher: RandomState,
    known: Mutex<HashMap<u64, Presented>>,
}

// === impl Chains ===

impl Chains {
    /// Says what `chain`, leaf first, is good for at `now`; asks `verify` if that is not known.
    pub(crate) fn read(
        &self,
        chain: &[CertificateDer<'static>],
        now: UnixTime,
        verify: impl FnOnce() -> Result<Verified, VerifyError>,
    ) -> Result<Presented, VerifyError> {
        let hash = self.hasher.hash_one(chain);
        let known = self.lock().get(&hash).filter(|known| *known.chain == *chain).cloned();
        let shared = match known {
            Some(known) if known.valid.0 <= now && now <= known.valid.1 => return Ok(known),
            Some(outdated) => Some(outdated.chain),
            None => None,
        };
        let Verified { svid, valid } = verify()?;
        let chain = shared.unwrap_or_else(|| chain.into());
        let presented = Presented { id: svid.id, chain, valid };
        let mut known = self.lock();
        known.remove(&hash);
        if !has_room(&known, &presented.chain) {
            known.retain(|_, presented| Arc::strong_count(&presented.chain) > 1);
        }
        if has_room(&known, &presented.chain) {
            known.insert(hash, presented.clone());
        }
        Ok(presented)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Presented>> {
        // No code that can panic runs under the lock; what it guards is only a cache.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_room(known: &HashMap<u64, Presented>, chain: &[CertificateDer<'_>]) -> bool {
    let length = |chain: &[CertificateDer<'_>]| chain.iter().map(|der| der.len()).sum::<usize>();
    let held: usize = known.values().map(|presented| length(&presented.chain)).sum();
    known.len() < MAX_CHAINS && held + length(chain) <= MAX_LENGTH
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::{
        testing::{Authority, WEB, at},
        verify::verify_in_any_role,
    };

    fn leaf(root: &Authority) -> Vec<CertificateDer<'static>> {
        root.leaf(WEB).chain
    }

    fn read(
        chains: &Chains,
        root: &Authority,
        chain: &[CertificateDer<'static>],
    ) -> Result<Presented, VerifyError> {
        chains.read(chain, at(0), || verify_in_any_role(&root.bundle(), chain, at(0)))
    }

    #[test]
    fn equal_chains_are_one_and_others_are_not() {
        let (chains, root) = (Chains::default(), Authority::root("root"));
        let [first, second] = [leaf(&root), leaf(&root)];
        let web = read(&chains, &root, &first).unwrap();
        assert_eq!(web.id.as_str(), WEB);
        assert!(Arc::ptr_eq(&web.chain, &read(&chains, &root, &first).unwrap().chain));
        assert!(!Arc::ptr_eq(&web.chain, &read(&chains, &root, &second).unwrap().chain));
        assert!(read(&chains, &root, &[]).is_err());
    }

    #[test]
    fn a_chain_is_verified_once_as_long_as_its_path_is_within_its_dates() {
        let (chains, root) = (Chains::default(), Authority::root("root"));
        let (chain, verified) = (leaf(&root), Cell::new(0));
        let read_at = |seconds| {
            chains.read(&chain, at(seconds), || {
                verified.set(verified.get() + 1);
                verify_in_any_role(&root.bundle(), &chain, at(seconds))
            })
        };
        let first = read_at(0).unwrap();
        assert_eq!(first.valid, (at(-60), at(3600)));
        assert!(Arc::ptr_eq(&first.chain, &read_at(3600).unwrap().chain));
        assert_eq!(verified.get(), 1);
        assert!(read_at(3601).is_err());
        assert_eq!(verified.get(), 2);
    }

    #[test]
    fn chains_are_bounded_and_those_in_use_stay_one() {
        let (chains, root) = (Chains::default(), Authority::root("root"));
        let held = read(&chains, &root, &leaf(&root)).unwrap();
        let short = leaf(&root);
        let mut long = short.clone();
        long.extend((0..10).map(|_| CertificateDer::from(vec![0; 1000])));
        for (filler, most) in [(short, MAX_CHAINS), (long, MAX_LENGTH / 10_000)] {
            for number in 0..=MAX_CHAINS {
                let mut chain = filler.clone();
                chain.push(CertificateDer::from(number.to_be_bytes().to_vec()));
                read(&chains, &root, &chain).unwrap();
            }
            assert!(chains.lock().len() <= most, "{} chains", chains.lock().len());
        }
        assert!(Arc::ptr_eq(&held.chain, &read(&chains, &root, &held.chain).unwrap().chain));
    }
}
