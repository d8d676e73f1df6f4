//! Roots that come and go while certificates live.

use rustls::HandshakeKind;

use super::*;
use crate::testing::Link;

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn cart() -> SpiffeId {
    CART.parse().unwrap()
}

/// Connects cart to web with the certificates that `bench` holds now.
fn connect(bench: &Bench) -> Result<HandshakeKind, String> {
    let client = bench.store.get(&cart()).ok_or("cart has no certificate")?;
    let server = bench.store.get(&web()).ok_or("web has no certificate")?;
    let connection = client.client_connection(&web(), [127, 0, 0, 1].into());
    let connection = connection.map_err(|error| error.to_string())?;
    let mut link = Link::new(connection, server.server_connection().unwrap());
    link.talk().map_err(|(end, error)| format!("{end}: {error}"))?;
    server.peer(&link.server).map_err(|error| error.to_string())?;
    Ok(link.server.handshake_kind().unwrap())
}

async fn bench_of_two() -> Bench {
    let bench = Bench::new(DAY);
    for id in [cart(), web()] {
        bench.store.want(&id);
        bench.store.wait(&id, SOON).await.unwrap();
    }
    bench
}

#[tokio::test(start_paused = true)]
async fn a_root_is_replaced_without_a_failure() {
    let bench = bench_of_two().await;
    let changes = bench.store.roots_changed();
    assert_eq!(connect(&bench), Ok(HandshakeKind::Full));
    assert_eq!(connect(&bench), Ok(HandshakeKind::Resumed));
    let old_chain = bench.store.get(&cart()).unwrap().chain().to_vec();

    assert!(!bench.store.set_roots(bundle_of(&[&bench.ca.ours])), "the same roots");
    assert_eq!(connect(&bench), Ok(HandshakeKind::Resumed));

    assert!(bench.store.set_roots(bundle_of(&[&bench.ca.ours, &bench.ca.strange])));
    assert_eq!(connect(&bench), Ok(HandshakeKind::Full));
    assert_eq!(connect(&bench), Ok(HandshakeKind::Resumed));
    assert_eq!(bench.store.still_trusted(&old_chain), Ok(cart()));

    // From here on the authority issues from the new root; certificates are renewed as they age.
    bench.mood(Mood::Strange);
    let renewed = Duration::from_hours(14);
    for _ in 0..100 {
        tokio::time::sleep(renewed / 100).await;
        connect(&bench).unwrap();
    }
    assert!(bench.store.set_roots(bundle_of(&[&bench.ca.strange])));
    assert_eq!(connect(&bench), Ok(HandshakeKind::Full));
    let error = bench.store.still_trusted(&old_chain).unwrap_err();
    assert!(error.to_string().contains("spiffe://cluster.local/ns/shop/sa/cart"), "{error}");
    assert_eq!(*changes.borrow(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_root_that_is_removed_at_once_is_replaced_at_once() {
    let bench = bench_of_two().await;
    connect(&bench).unwrap();
    bench.mood(Mood::Strange);
    assert!(bench.store.set_roots(bundle_of(&[&bench.ca.strange])));
    let error = connect(&bench).unwrap_err();
    assert!(error.contains("client: the certificate of"), "{error}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(connect(&bench), Ok(HandshakeKind::Full));
}

#[tokio::test(start_paused = true)]
async fn a_chain_is_judged_by_the_time_of_now() {
    let bench = bench_of_two().await;
    let chain = bench.store.get(&cart()).unwrap().chain().to_vec();
    assert_eq!(bench.store.still_trusted(&chain), Ok(cart()));
    bench.jump(86_401);
    assert!(bench.store.still_trusted(&chain).unwrap_err().to_string().contains("CertExpired"));
    assert!(bench.store.still_trusted(&[]).is_err());
}

#[tokio::test(start_paused = true)]
async fn certificates_that_come_after_a_change_are_judged_by_the_new_roots() {
    let bench = Bench::new(DAY);
    bench.mood(Mood::Hangs);
    bench.store.want(&web());
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.store.set_roots(bundle_of(&[&bench.ca.strange]));
    bench.mood(Mood::Works);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(bench.store.get(&web()).is_none());
    bench.mood(Mood::Strange);
    let identity = bench.store.wait(&web(), Duration::from_secs(10)).await.unwrap();
    assert_eq!(identity.roots_generation(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_comes_a_moment_before_its_root_is_not_asked_for_again() {
    let bench = Bench::new(DAY);
    bench.mood(Mood::Strange);
    bench.store.want(&web());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(bench.store.get(&web()).is_none());
    // A change of roots that does not bring the missing one.
    bench.store.set_roots(Authority::root("another").bundle());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.status(&web()).last_error, None);

    bench.store.set_roots(bundle_of(&[&bench.ca.strange]));
    bench.store.wait(&web(), Duration::from_millis(10)).await.unwrap();
    assert_eq!(bench.asked(&web()).len(), 1);
}
