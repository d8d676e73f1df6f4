//! From the first pod of an identity to the last.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_certificate_is_there_soon_after_it_is_wanted() {
    let bench = Bench::new(DAY);
    assert!(bench.store.get(&web()).is_none());
    bench.store.want(&web());
    assert!(bench.store.get(&web()).is_none());
    let status = bench.status(&web());
    assert_eq!((status.certificate, status.last_error), (None, None));
    let identity = bench.store.wait(&web(), SOON).await.unwrap();
    assert_eq!(identity.id(), &web());
    assert!(Arc::ptr_eq(&identity, &bench.store.get(&web()).unwrap()));
    let status = bench.status(&web());
    assert_eq!(status.certificate.as_ref(), Some(identity.svid()));
    let half = at(86_400 / 2).as_secs();
    assert!(status.next_renewal.as_secs().abs_diff(half) <= 86_400 / 20, "{status:?}");
}

#[tokio::test(start_paused = true)]
async fn pods_of_one_identity_share_one_request() {
    let bench = Bench::new(DAY);
    for _ in 0..50 {
        bench.store.want(&web());
    }
    let id = web();
    let waits = (0..50).map(|_| bench.store.wait(&id, SOON));
    for result in futures_in_order(waits).await {
        result.unwrap();
    }
    assert_eq!(bench.asked(&web()).len(), 1);
}

async fn futures_in_order<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut outputs = Vec::new();
    for future in futures {
        outputs.push(future.await);
    }
    outputs
}

#[tokio::test(start_paused = true)]
async fn the_key_goes_with_the_last_pod() {
    let bench = Bench::new(DAY);
    bench.store.want(&web());
    bench.store.want(&web());
    bench.store.wait(&web(), SOON).await.unwrap();
    bench.store.forget(&web());
    let last = Arc::downgrade(&bench.store.get(&web()).unwrap());
    bench.store.forget(&web());
    assert!(bench.store.get(&web()).is_none());
    assert_eq!(bench.store.status(), []);
    let error = bench.store.wait(&web(), SOON).await.unwrap_err();
    assert_eq!(error, WaitError::Unknown(web()));
    // The aborted task lets go of the certificate when the runtime next runs.
    tokio::time::sleep(SOON).await;
    assert!(last.upgrade().is_none());
    bench.store.forget(&web());
    bench.store.want(&web());
    bench.store.wait(&web(), SOON).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_is_told_when_the_pod_has_gone() {
    let bench = Bench::new(DAY);
    bench.mood(Mood::Hangs);
    bench.store.want(&web());
    let store = bench.store.clone();
    let waiting = tokio::spawn(async move { store.wait(&web(), DAY).await });
    tokio::time::sleep(SOON / 2).await;
    bench.store.forget(&web());
    assert_eq!(waiting.await.unwrap().unwrap_err(), WaitError::Unknown(web()));
}

#[tokio::test(start_paused = true)]
async fn an_hour_of_one_minute_certificates_leaves_no_gap() {
    let bench = Bench::new(Duration::from_mins(1));
    bench.store.want(&web());
    bench.store.wait(&web(), SOON).await.unwrap();
    let mut serials = std::collections::HashSet::new();
    for second in 0..3600 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let identity = bench.store.get(&web()).unwrap_or_else(|| panic!("none at {second} s"));
        let rest = identity.svid().not_after.as_secs() - bench.clock.now().as_secs();
        assert!(rest >= 12, "only {rest} s left at {second} s");
        serials.insert(identity.svid().serial.clone());
    }
    let asked = bench.asked(&web()).len();
    assert_eq!(serials.len(), asked);
    assert!((109..=140).contains(&asked), "{asked} requests");
}

#[tokio::test(start_paused = true)]
async fn pods_that_come_and_go_do_not_hurry_the_authority() {
    let bench = Bench::new(DAY);
    for _ in 0..100 {
        bench.store.want(&web());
        tokio::time::sleep(Duration::from_millis(50)).await;
        bench.store.forget(&web());
    }
    bench.assert_paced(&web());
    assert!(bench.asked(&web()).len() <= 6);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_dropped_asks_no_more() {
    let bench = Bench::new(DAY);
    bench.mood(Mood::Fails);
    bench.store.want(&web());
    tokio::time::sleep(SOON).await;
    let Bench { store, ca, .. } = bench;
    drop(store);
    let asked = lock(&ca.asked).len();
    tokio::time::sleep(DAY).await;
    assert_eq!(lock(&ca.asked).len(), asked);
}
