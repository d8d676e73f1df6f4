//! The store against an authority that can be made to fail in every way, on tokio's paused time.

mod federation;
mod judged;
mod life;
mod outage;
mod roots;

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use tokio::time::Instant;

use super::*;
use crate::{
    ca::{LocalCa, PemFiles},
    issuer::{CertRequest, IssueError, Issued, IssuedChain, Issuing},
    testing::{Authority, DOMAIN, WEB, at},
};

/// A clock that runs with tokio's and can be set.
#[derive(Debug)]
struct RunningClock {
    start: Instant,
    offset: AtomicI64,
}

impl Clock for RunningClock {
    fn now(&self) -> UnixTime {
        let elapsed = i64::try_from(self.start.elapsed().as_secs()).unwrap();
        at(elapsed + self.offset.load(Ordering::SeqCst))
    }
}

/// What the authority does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Works,
    Fails,
    Refuses,
    Hangs,
    /// Signs with a root that nobody trusts.
    Strange,
    /// Signs for another identity.
    Mistaken,
    /// Signs another key.
    Swapped,
}

struct MoodyCa {
    ours: LocalCa,
    /// The authority behind `ours`, for certificates that a [`LocalCa`] does not issue.
    root: Authority,
    strange: LocalCa,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<(SpiffeId, Instant)>>,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
}

struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Issuer for MoodyCa {
    fn issue(&self, request: CertRequest) -> Issuing<'_> {
        Box::pin(async move {
            lock(&self.asked).push((request.id.clone(), Instant::now()));
            let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            let _under_way = UnderWay(&self.under_way);
            self.most_under_way.fetch_max(now, Ordering::SeqCst);
            let mood = *lock(&self.mood);
            let CertRequest { id, ttl, .. } = request.clone();
            let chain = match mood {
                Mood::Works => self.ours.sign(&request),
                Mood::Fails => {
                    Err(IssueError::Unreachable { id, source: "connection refused".into() })
                }
                Mood::Refuses => Err(IssueError::Refused { id, rule: "no".to_owned() }),
                Mood::Hangs => std::future::pending().await,
                Mood::Strange => self.strange.sign(&request),
                Mood::Mistaken => {
                    let leaf = self.root.certify(&request.csr, "spiffe://cluster.local/other");
                    Ok(IssuedChain { certificates: vec![leaf] })
                }
                Mood::Swapped => self.ours.sign(&fresh(id.as_str(), ttl)),
            };
            chain.map(Issued::Signed)
        })
    }
}

fn fresh(id: &str, ttl: Duration) -> CertRequest {
    let id = id.parse().unwrap();
    crate::issuer::PendingKey::generate(&id).unwrap().request(&id, ttl)
}

/// A store, its authority and its clock.
struct Bench {
    store: Arc<CertStore>,
    ca: Arc<MoodyCa>,
    clock: Arc<RunningClock>,
    _state: tempfile::TempDir,
}

impl Bench {
    fn new(ttl: Duration) -> Self {
        let state = tempfile::tempdir().unwrap();
        let clock = Arc::new(RunningClock { start: Instant::now(), offset: AtomicI64::new(0) });
        let domain = DOMAIN.parse().unwrap();
        let root = Authority::root("ours");
        let (certificate, key) = (state.path().join("tls.crt"), state.path().join("tls.key"));
        std::fs::write(&certificate, root.pem().0).unwrap();
        std::fs::write(&key, root.pem().1).unwrap();
        let files = PemFiles { certificate, key, roots: None };
        let strange = state.path().join("strange");
        let ca = Arc::new(MoodyCa {
            ours: LocalCa::from_pem(&files, &domain, clock.clone()).unwrap(),
            root,
            strange: LocalCa::embedded(&strange, &domain, clock.clone()).unwrap(),
            mood: Mutex::new(Mood::Works),
            asked: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most_under_way: AtomicUsize::new(0),
        });
        let settings = Settings { ttl, ..Settings::default() };
        let bundle = bundle_of(&[&ca.ours]);
        let store = CertStore::new(settings, ca.clone(), bundle, clock.clone());
        Self { store: Arc::new(store), ca, clock, _state: state }
    }

    fn mood(&self, mood: Mood) {
        *lock(&self.ca.mood) = mood;
    }

    /// Moves the clock by `seconds`, backwards if negative.
    fn jump(&self, seconds: i64) {
        self.clock.offset.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Returns when certificates of `id` were asked for, in order.
    fn asked(&self, id: &SpiffeId) -> Vec<Instant> {
        let asked = lock(&self.ca.asked);
        asked.iter().filter(|(asked, _)| asked == id).map(|(_, at)| *at).collect()
    }

    fn assert_paced(&self, id: &SpiffeId) {
        for pair in self.asked(id).windows(2) {
            assert!(pair[1] - pair[0] >= Duration::from_secs(1), "{:?}", pair[1] - pair[0]);
        }
    }

    fn status(&self, id: &SpiffeId) -> CertStatus {
        self.store.status().into_iter().find(|status| status.identity == *id).unwrap()
    }
}

fn bundle_of(authorities: &[&LocalCa]) -> TrustBundle {
    let roots = authorities.iter().flat_map(|ca| ca.roots().iter().cloned());
    TrustBundle::new(DOMAIN.parse().unwrap(), roots).unwrap()
}

fn web() -> SpiffeId {
    WEB.parse().unwrap()
}

const DAY: Duration = Duration::from_hours(24);
const SOON: Duration = Duration::from_secs(5);
