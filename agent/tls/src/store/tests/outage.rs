//! Authorities that fail, and clocks that jump: refusal at worst, and recovery.

use super::*;

/// Waits until the store has a certificate again. Returns how long that took.
async fn recovery(bench: &Bench) -> Duration {
    let start = Instant::now();
    bench.store.wait(&web(), Duration::from_mins(10)).await.unwrap();
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_down_costs_nothing_until_certificates_expire() {
    for mood in [Mood::Fails, Mood::Refuses, Mood::Hangs] {
        let bench = Bench::new(Duration::from_hours(1));
        bench.store.want(&web());
        let first = bench.store.wait(&web(), SOON).await.unwrap();
        bench.mood(mood);
        for _ in 0..3600 - 2 {
            assert!(bench.store.get(&web()).is_some());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(SOON).await;
        assert!(bench.store.get(&web()).is_none(), "an expired certificate was offered");
        assert!(!first.is_valid());
        let status = bench.status(&web());
        assert_eq!(status.certificate.as_ref(), Some(first.svid()));
        assert!(status.last_error.is_some());
        assert_eq!(status.is_refused, matches!(mood, Mood::Refuses));
        let error = bench.store.wait(&web(), SOON).await.unwrap_err();
        assert!(matches!(error, WaitError::TimedOut { last_error: Some(_), .. }), "{error}");
        bench.assert_paced(&web());
        bench.mood(Mood::Works);
        assert!(recovery(&bench).await <= Duration::from_secs(10));
        let status = bench.status(&web());
        assert_eq!((status.last_error, status.is_refused), (None, false));
    }
}

#[tokio::test(start_paused = true)]
async fn recovery_is_soon_whenever_the_authority_returns() {
    for mood in [Mood::Fails, Mood::Hangs] {
        for outage in 0..30 {
            let bench = Bench::new(DAY);
            bench.mood(mood);
            bench.store.want(&web());
            tokio::time::sleep(Duration::from_millis(outage * 1370)).await;
            bench.mood(Mood::Works);
            let recovery = recovery(&bench).await;
            assert!(recovery <= Duration::from_secs(10), "{mood:?}, {outage}: {recovery:?}");
            bench.assert_paced(&web());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_peers_would_refuse_is_not_used() {
    for (mood, reason) in [
        (Mood::Strange, "that peers would refuse"),
        (Mood::Mistaken, "but issued one for spiffe://cluster.local/other"),
        (Mood::Swapped, "does not fit its key"),
    ] {
        let bench = Bench::new(DAY);
        bench.mood(mood);
        bench.store.want(&web());
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(bench.store.get(&web()).is_none(), "{mood:?}");
        let error = bench.status(&web()).last_error.unwrap();
        assert!(error.contains(reason) && error.contains(WEB), "{mood:?}: {error}");
        bench.assert_paced(&web());
        bench.mood(Mood::Works);
        assert!(recovery(&bench).await <= Duration::from_secs(10));
    }
}

#[tokio::test(start_paused = true)]
async fn requests_under_way_are_bounded_and_all_are_served() {
    let bench = Bench::new(DAY);
    bench.mood(Mood::Hangs);
    let ids: Vec<SpiffeId> =
        (0..100).map(|n| format!("spiffe://cluster.local/{n}").parse().unwrap()).collect();
    for id in &ids {
        bench.store.want(id);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.ca.most_under_way.load(Ordering::SeqCst), 8);
    bench.mood(Mood::Works);
    for id in &ids {
        bench.store.wait(id, Duration::from_secs(10)).await.unwrap();
        bench.assert_paced(id);
    }
    assert_eq!(bench.ca.under_way.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_jump_of_the_clock_opens_nothing_and_is_overcome() {
    for (ttl, jump) in [
        (Duration::from_mins(5), 600),
        (Duration::from_mins(5), -600),
        (Duration::from_hours(1), 600),
        (Duration::from_hours(1), -600),
        (DAY, 600),
        (DAY, -600),
        (DAY, 100_000),
        (DAY, -80_000),
    ] {
        let bench = Bench::new(ttl);
        bench.store.want(&web());
        let before = bench.store.wait(&web(), SOON).await.unwrap();
        bench.jump(jump);
        let now = bench.clock.now();
        let offered = bench.store.get(&web());
        assert_eq!(offered.is_some(), before.svid().is_valid_at(now), "{ttl:?} {jump}");
        assert!(recovery(&bench).await <= Duration::from_secs(2), "{ttl:?} {jump}");
        for _ in 0..120 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let identity = bench.store.get(&web()).unwrap();
            assert!(identity.svid().is_valid_at(bench.clock.now()));
        }
        bench.assert_paced(&web());
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_before_its_time_is_refused_not_believed() {
    let bench = Bench::new(DAY);
    bench.store.want(&web());
    bench.store.wait(&web(), SOON).await.unwrap();
    // The clock is now before the validity of the roots themselves: nothing can be issued or shown
    // until it is right again.
    bench.jump(-10 * 86_400);
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(bench.store.get(&web()).is_none());
    assert!(bench.status(&web()).last_error.is_some());
    bench.jump(10 * 86_400);
    assert!(bench.store.get(&web()).is_some(), "the certificate of before is good again");
}
