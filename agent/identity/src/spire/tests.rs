//! The client against a Delegated Identity API that a test speaks for, over a Unix socket.

mod agent;

use std::time::Instant;

use sluice_tls::{CertStore, Settings, SystemClock, TrustBundle};

use self::agent::SpireAgent;
use super::*;
use crate::testing::{HOUR, OTHER, Pki, WEB, request};

fn web() -> SpiffeId {
    WEB.parse().unwrap()
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

/// A SPIRE agent with a root, and a store that asks it.
struct Bench {
    root: Pki,
    agent: SpireAgent,
    store: Arc<CertStore>,
}

impl Bench {
    fn new() -> Self {
        let root = Pki::root("root");
        let agent = SpireAgent::start();
        agent.bundles(&[("spiffe://cluster.local", &[&root])]);
        let spire = Spire::start(&agent.socket, domain()).unwrap();
        let bundle = TrustBundle::without_roots(domain());
        let settings = Settings { request_timeout: Duration::from_secs(2), ..Settings::default() };
        let mut delivered = spire.delivered();
        let store =
            Arc::new(CertStore::new(settings, Arc::new(spire), bundle, Arc::new(SystemClock)));
        let follower = Arc::clone(&store);
        tokio::spawn(async move {
            while delivered.changed().await.is_ok() {
                let Delivered { local, federated } = delivered.borrow_and_update().clone();
                let mut bundle = TrustBundle::new(domain(), local).unwrap();
                for (domain, roots) in federated {
                    bundle = bundle.offered(domain, roots).unwrap();
                }
                follower.set_roots(bundle);
            }
        });
        Self { root, agent, store }
    }

    /// Waits until the last error says all of `words`. On a busy machine other errors may come first, such as that of a
    /// request made before SPIRE's roots had arrived.
    async fn await_error(&self, words: &[&str]) {
        let start = Instant::now();
        loop {
            let error = self.store.status().into_iter().find_map(|status| status.last_error);
            if error.as_ref().is_some_and(|error| words.iter().all(|word| error.contains(word))) {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{words:?}: {error:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits for a certificate that is not `serial`.
    async fn other_than(&self, serial: &str) -> Duration {
        let start = Instant::now();
        while self.store.get(&web()).is_none_or(|identity| identity.svid().serial == serial) {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", self.store.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        start.elapsed()
    }
}

#[tokio::test]
async fn the_identity_that_is_wanted_is_taken_from_among_those_that_match() {
    let bench = Bench::new();
    let (other, web_pair) = (bench.root.pair(OTHER, HOUR), bench.root.pair(WEB, HOUR));
    bench.agent.svids(&[(OTHER, &other), (WEB, &web_pair)]);
    bench.store.want(&web());
    let identity = bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
    assert_eq!(identity.id(), &web());
    assert_eq!(identity.chain()[0].as_ref(), web_pair.0);
    let selectors = ["k8s:ns:shop", "k8s:sa:web"].map(str::to_owned).to_vec();
    assert_eq!(bench.agent.asked(), [selectors]);
}

#[tokio::test]
async fn what_spire_renews_is_used_at_once() {
    let bench = Bench::new();
    bench.agent.svids(&[(WEB, &bench.root.pair(WEB, HOUR))]);
    bench.store.want(&web());
    let first = bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    bench.agent.svids(&[(WEB, &bench.root.pair(WEB, HOUR))]);
    let taken = bench.other_than(&first.svid().serial).await;
    assert!(taken < Duration::from_millis(500), "{taken:?}");
    assert_eq!(bench.agent.asked().len(), 1, "one stream brings both");
}

#[tokio::test]
async fn a_push_of_the_same_certificate_changes_nothing() {
    let bench = Bench::new();
    let pair = bench.root.pair(WEB, HOUR);
    bench.agent.svids(&[(WEB, &pair)]);
    bench.store.want(&web());
    let first = bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
    bench.agent.svids(&[(WEB, &pair)]);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(Arc::ptr_eq(&first, &bench.store.get(&web()).unwrap()));
}

#[tokio::test]
async fn an_identity_believes_the_trust_domains_that_its_entry_federates_with() {
    let bench = Bench::new();
    let foreign = Pki::root("foreign");
    bench.agent.bundles(&[
        ("spiffe://cluster.local", &[&bench.root]),
        ("spiffe://elsewhere", &[&foreign]),
        ("spiffe://third", &[&foreign]),
    ]);
    bench.agent.federate(&["spiffe://elsewhere", "spiffe://not a domain"]);
    let pair = bench.root.pair(WEB, HOUR);
    bench.agent.svids(&[(WEB, &pair)]);
    let mut roots = bench.store.roots_changed();
    bench.store.want(&web());
    bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
    while bench.store.roots().domains().count() < 3 {
        roots.changed().await.unwrap();
    }
    let believes = |domain: &str| {
        bench.store.believes(&web(), &format!("spiffe://{domain}/ns/a/sa/b").parse().unwrap())
    };
    assert!(believes("cluster.local") && believes("elsewhere") && !believes("third"));
    // The certificate stays, and the bundle is still there: another entry may need it.
    bench.agent.federate(&["spiffe://third"]);
    bench.agent.svids(&[(WEB, &pair)]);
    while believes("elsewhere") {
        tokio::time::timeout(Duration::from_secs(10), roots.changed()).await.unwrap().unwrap();
    }
    assert!(believes("cluster.local") && believes("third"));
    assert_eq!(bench.store.get(&web()).unwrap().chain()[0].as_ref(), pair.0);
}

#[tokio::test]
async fn a_root_of_spire_is_replaced_without_a_gap() {
    let bench = Bench::new();
    bench.agent.svids(&[(WEB, &bench.root.pair(WEB, HOUR))]);
    bench.store.want(&web());
    let first = bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
    let next = Pki::root("next");
    bench.agent.bundles(&[("spiffe://cluster.local", &[&bench.root, &next])]);
    bench.agent.svids(&[(WEB, &next.pair(WEB, HOUR))]);
    bench.other_than(&first.svid().serial).await;
    bench.agent.bundles(&[("spiffe://cluster.local", &[&next])]);
    let mut roots = bench.store.roots_changed();
    while bench.store.roots().roots(&domain()).len() != 1 {
        roots.changed().await.unwrap();
    }
    let chain = bench.store.get(&web()).unwrap().chain().to_vec();
    bench.store.still_trusted(&chain).unwrap();
}

#[tokio::test]
async fn bundles_of_federated_domains_are_passed_on_and_broken_ones_left_out() {
    let (root, foreign) = (Pki::root("root"), Pki::root("foreign"));
    let agent = SpireAgent::start();
    let spire = Spire::start(&agent.socket, domain()).unwrap();
    let mut delivered = spire.delivered();
    agent.bundles(&[("spiffe://elsewhere", &[&foreign])]);
    agent.raw_bundles([("cluster.local".to_owned(), b"garbage".to_vec())]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!delivered.has_changed().unwrap(), "without our own roots nothing is taken over");
    let mut bundles = vec![
        ("spiffe://cluster.local".to_owned(), root.der().to_vec()),
        (
            "spiffe://elsewhere".to_owned(),
            [foreign.der(), root.der()].map(|der| der.to_vec()).concat(),
        ),
        ("spiffe://broken".to_owned(), b"garbage".to_vec()),
        ("spiffe://empty".to_owned(), Vec::new()),
        ("spiffe://not a domain".to_owned(), foreign.der().to_vec()),
    ];
    agent.raw_bundles(bundles.clone());
    delivered.changed().await.unwrap();
    let first = delivered.borrow_and_update().clone();
    assert_eq!(first.local, [root.der()]);
    let elsewhere = "elsewhere".parse().unwrap();
    assert_eq!(first.federated, [(elsewhere, vec![foreign.der(), root.der()])].into());
    bundles.truncate(1);
    agent.raw_bundles(bundles);
    delivered.changed().await.unwrap();
    assert!(delivered.borrow().federated.is_empty());
}

#[tokio::test]
async fn a_certificate_is_judged_before_it_is_used() {
    for (svids, words) in [
        (vec![], "SPIRE has no entry for its namespace and service account"),
        (vec![(OTHER, OTHER, HOUR)], "are for spiffe://cluster.local/ns/shop/sa/other only"),
        (vec![(WEB, OTHER, HOUR)], "but issued one for spiffe://cluster.local/ns/shop/sa/other"),
        (vec![(WEB, WEB, -HOUR)], "CertExpired"),
    ] {
        let bench = Bench::new();
        let pairs: Vec<_> = svids
            .iter()
            .map(|(said, is, seconds)| (*said, bench.root.pair(is, *seconds)))
            .collect();
        let pairs: Vec<_> = pairs.iter().map(|(said, pair)| (*said, pair)).collect();
        bench.agent.svids(&pairs);
        bench.store.want(&web());
        bench.await_error(&[words]).await;
        assert!(bench.store.get(&web()).is_none());
        // An entry that is registered later is taken over when it is pushed.
        bench.agent.svids(&[(WEB, &bench.root.pair(WEB, HOUR))]);
        bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
    }
}

#[tokio::test]
async fn keys_and_roots_that_do_not_fit_are_refused() {
    let bench = Bench::new();
    let (certificate, _) = bench.root.pair(WEB, HOUR);
    let (_, key) = bench.root.pair(WEB, HOUR);
    let strange = Pki::root("root").pair(WEB, HOUR);
    let no_key = (bench.root.pair(WEB, HOUR).0, b"no key".to_vec());
    for (pair, words) in [
        ((certificate, key), "does not fit its key"),
        (no_key, "does not fit its key"),
        (strange, "peers would refuse"),
    ] {
        let bench = Bench { root: Pki::root("root"), ..Bench::new() };
        bench.agent.svids(&[(WEB, &pair)]);
        bench.store.want(&web());
        bench.await_error(&[words]).await;
    }
}

#[tokio::test]
async fn an_agent_that_is_not_a_delegate_is_told_so() {
    let bench = Bench::new();
    bench.agent.refuse(Some("caller not configured as an authorized delegate"));
    bench.store.want(&web());
    bench.await_error(&["refuses", "authorized delegate"]).await;
    bench.agent.svids(&[(WEB, &bench.root.pair(WEB, HOUR))]);
    bench.agent.refuse(None);
    bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn certificates_outlive_the_spire_agent_and_streams_are_opened_again() {
    let mut bench = Bench::new();
    bench.agent.svids(&[(WEB, &bench.root.pair(WEB, HOUR))]);
    bench.store.want(&web());
    let first = bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
    bench.agent.stop().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(bench.store.get(&web()).is_some());
    bench.agent.svids(&[(WEB, &bench.root.pair(WEB, HOUR))]);
    bench.agent.restart();
    let taken = bench.other_than(&first.svid().serial).await;
    assert!(taken < Duration::from_secs(10), "{taken:?}");
}

#[tokio::test]
async fn a_spire_agent_that_comes_late_is_found() {
    let mut bench = Bench::new();
    bench.agent.stop().await;
    bench.store.want(&web());
    bench.await_error(&["cannot be asked"]).await;
    bench.agent.svids(&[(WEB, &bench.root.pair(WEB, HOUR))]);
    bench.agent.restart();
    bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn the_stream_ends_with_the_last_pod() {
    let bench = Bench::new();
    bench.agent.svids(&[(WEB, &bench.root.pair(WEB, HOUR))]);
    bench.store.want(&web());
    bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
    assert_eq!(bench.agent.open_streams(), 1);
    bench.store.forget(&web());
    for _ in 0..500 {
        if bench.agent.open_streams() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the key is still pushed to nobody");
}

#[tokio::test]
async fn identities_that_spire_cannot_be_asked_for_are_refused() {
    let agent = SpireAgent::start();
    let spire = Spire::start(&agent.socket, domain()).unwrap();
    for (id, words) in [
        ("spiffe://elsewhere/ns/a/sa/b", "is not of trust domain cluster.local"),
        ("spiffe://cluster.local/web", "/ns/<namespace>/sa/<service account>"),
    ] {
        assert!(spire.follow(&id.parse().unwrap()).is_none());
        let error = spire.issue(request(id)).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(agent.asked().is_empty());
}
