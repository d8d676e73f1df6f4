//! Peers judged again after their handshake, by the trust and the time of that moment.

use rustls_pki_types::CertificateDer;

use super::*;
use crate::{CrlPolicy, DenyList, Peer, Revocations, VerifyError, testing::Link};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const TEN_MINUTES: i64 = 600;

fn cart() -> SpiffeId {
    CART.parse().unwrap()
}

async fn bench_of_two(ttl: Duration) -> Bench {
    let bench = Bench::new(ttl);
    for id in [cart(), web()] {
        bench.store.want(&id);
        bench.store.wait(&id, SOON).await.unwrap();
    }
    bench
}

/// Connects cart to web and returns the client as the server knows it.
fn connect(bench: &Bench) -> Result<Peer, String> {
    let client = bench.store.get(&cart()).ok_or("cart has no certificate")?;
    let server = bench.store.get(&web()).ok_or("web has no certificate")?;
    let connection = client.client_connection(&web(), [127, 0, 0, 1].into());
    let connection = connection.map_err(|error| error.to_string())?;
    let accepted = server.server_connection().map_err(|error| error.to_string())?;
    let mut link = Link::new(connection, accepted);
    link.talk().map_err(|(end, error)| format!("{end}: {error}"))?;
    server.peer(&link.server).map_err(|error| error.to_string())
}

fn deny(bench: &Bench, id: &str) {
    let mut denied = DenyList::default();
    denied.add(id).unwrap();
    let denied = Revocations::new(CrlPolicy::default(), Arc::new(denied));
    assert!(bench.store.set_roots(bundle_of(&[&bench.ca.ours]).without(denied)));
}

fn chain(bench: &Bench) -> Vec<CertificateDer<'static>> {
    bench.store.get(&cart()).unwrap().chain().to_vec()
}

#[tokio::test(start_paused = true)]
async fn a_denied_client_is_found_before_its_next_stream_and_refused_anew() {
    let bench = bench_of_two(DAY).await;
    let mut peer = connect(&bench).unwrap();
    assert_eq!(bench.store.confirm(&mut peer, &web()), Ok(()));
    deny(&bench, CART);
    let denied = Err(VerifyError::Denied { id: cart() });
    assert_eq!(bench.store.confirm(&mut peer, &web()), denied);
    assert_eq!(bench.store.still_vouched(&peer.chain), Err(VerifyError::Denied { id: cart() }));
    let error = connect(&bench).unwrap_err();
    assert!(error.contains("names an identity that is denied"), "{error}");
    bench.store.set_roots(bundle_of(&[&bench.ca.ours]));
    assert_eq!(bench.store.confirm(&mut peer, &web()), Ok(()));
    connect(&bench).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_denied_identity_of_our_own_may_use_no_connection() {
    let bench = bench_of_two(DAY).await;
    let mut peer = connect(&bench).unwrap();
    deny(&bench, WEB);
    let denied = Err(VerifyError::Denied { id: web() });
    assert_eq!(bench.store.confirm(&mut peer, &web()), denied);
    assert!(connect(&bench).unwrap_err().contains("denied"));
}

#[tokio::test(start_paused = true)]
async fn a_removed_root_takes_confirmed_peers_along() {
    let bench = bench_of_two(DAY).await;
    let mut peer = connect(&bench).unwrap();
    bench.store.set_roots(bundle_of(&[&bench.ca.ours, &bench.ca.strange]));
    assert_eq!(bench.store.confirm(&mut peer, &web()), Ok(()));
    bench.store.set_roots(bundle_of(&[&bench.ca.strange]));
    assert!(bench.store.confirm(&mut peer, &web()).is_err());
    assert!(bench.store.still_vouched(&peer.chain).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_used_again_while_both_certificates_are_young() {
    let bench = bench_of_two(DAY).await;
    let own = bench.store.get(&web()).unwrap();
    let peer = connect(&bench).unwrap();
    assert!(bench.store.may_reuse(&peer, &own));
    // The same certificate under other roots is the same certificate.
    bench.store.set_roots(bundle_of(&[&bench.ca.ours, &bench.ca.strange]));
    assert!(bench.store.may_reuse(&peer, &bench.store.get(&web()).unwrap()));
    assert!(!bench.store.may_reuse(&peer, &bench.store.get(&cart()).unwrap()));
    bench.jump(86_400 / 2);
    assert!(!bench.store.may_reuse(&peer, &own), "the peer has another by now");
}

#[tokio::test(start_paused = true)]
async fn what_is_open_outlives_its_certificates_but_nothing_new_begins_on_it() {
    let bench = bench_of_two(DAY).await;
    let mut peer = connect(&bench).unwrap();
    bench.mood(Mood::Fails);
    bench.jump(86_401);
    assert!(bench.store.confirm(&mut peer, &web()).is_err());
    assert_eq!(bench.store.still_vouched(&peer.chain), Ok(cart()));
    assert!(connect(&bench).is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_open_does_not_hang_on_a_certificate_that_no_path_needs() {
    let bench = Bench::new(DAY);
    let root = &bench.ca.root;
    let mut chain = root.intermediate("intermediate").leaf(CART).chain;
    chain.push(Authority::root("old").cross_signed(root, "ours", -100));
    for jump in [0, 7200, -14_400] {
        bench.jump(jump);
        assert_eq!(bench.store.still_vouched(&chain), Ok(cart()), "after {jump} s");
    }
    bench.store.set_roots(bundle_of(&[&bench.ca.strange]));
    assert!(bench.store.still_vouched(&chain).is_err());
}

#[tokio::test(start_paused = true)]
async fn what_is_open_outlives_an_authority_that_ended_before_its_leaf() {
    let bench = Bench::new(DAY);
    let intermediate = bench.ca.root.intermediate_with("intermediate", |params| {
        Authority::validity(params, -100, 1800);
    });
    let chain = intermediate.leaf(CART).chain;
    for jump in [2000, 4000] {
        bench.jump(jump);
        assert!(bench.store.still_trusted(&chain).is_err(), "after {jump} s");
        assert_eq!(bench.store.still_vouched(&chain), Ok(cart()), "after {jump} s");
    }
}

/// Certificates of five minutes, so that every jump leaves their validity.
#[tokio::test(start_paused = true)]
async fn jumps_of_the_clock_open_nothing() {
    for first in [TEN_MINUTES, -TEN_MINUTES] {
        let bench = bench_of_two(Duration::from_mins(5)).await;
        bench.mood(Mood::Hangs);
        let mut peer = connect(&bench).unwrap();
        let chain = chain(&bench);
        for jump in [first, -first, -first, first] {
            bench.jump(jump);
            let is_home = bench.clock.offset.load(Ordering::SeqCst) == 0;
            assert_eq!(bench.store.get(&web()).is_some(), is_home, "after {jump} s");
            assert_eq!(connect(&bench).is_ok(), is_home, "after {jump} s");
            assert_eq!(bench.store.confirm(&mut peer, &web()).is_ok(), is_home, "after {jump} s");
            assert_eq!(bench.store.still_trusted(&chain).is_ok(), is_home, "after {jump} s");
            assert!(bench.store.still_vouched(&chain).is_ok(), "open connections go on");
            let stranger = Authority::root("foreign").leaf(CART).chain;
            assert!(bench.store.still_trusted(&stranger).is_err());
            assert!(!bench.store.status().is_empty());
        }
        // The CA answers again: with a certificate of the new time everything works.
        bench.jump(first);
        bench.mood(Mood::Works);
        tokio::time::sleep(Duration::from_secs(15)).await;
        connect(&bench).unwrap();
        bench.assert_paced(&web());
    }
}
