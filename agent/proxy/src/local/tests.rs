//! Real sessions whose two ends do, or do not, share a process.

use std::time::Duration;

use tokio::{io::AsyncReadExt, time::timeout};

use super::*;
use crate::{
    live::LiveTable,
    relay::{Outcome, Relay, Side},
    testing::{PATIENCE, live, opened, sessions, tcp_pair},
};
use sluice_wire::{Control, ResetReason};

async fn linked() -> (Session, Session) {
    let links = Arc::default();
    let (near, mut far) = sessions(&links, &links).await;
    opened(&mut far).await;
    assert!(lock(&links.0).is_empty(), "an announcement outlived its handshake");
    (near, far)
}

async fn delivered() -> (Delivered, tokio::net::TcpStream) {
    let (application, ours) = tcp_pair().await;
    let live = LiveTable::new(1).list(0, live());
    (Delivered { application: ours.into_std(), live }, application)
}

#[tokio::test]
async fn only_two_ends_in_one_process_find_each_other() {
    let (near, far) = linked().await;
    let (near, far) = (near.link.unwrap(), far.link.unwrap());
    assert!(Arc::ptr_eq(&near, &far));
    let (ours, theirs) = (Arc::default(), Arc::default());
    let (near, far) = sessions(&ours, &theirs).await;
    assert!(near.link.is_none() && far.link.is_none());
    assert!(lock(&ours.0).is_empty() && lock(&theirs.0).is_empty());
}

#[tokio::test]
async fn the_links_of_two_sessions_have_nothing_in_common() {
    let links = Arc::default();
    let (one, other) = (sessions(&links, &links).await, sessions(&links, &links).await);
    assert!(!Arc::ptr_eq(&one.0.link.unwrap(), &other.0.link.unwrap()));
}

#[tokio::test]
async fn a_stream_that_is_let_in_leaves_the_session_free_for_the_next() {
    let (mut near, mut far) = linked().await;
    let link = near.link.clone().unwrap();
    for _ in 0..3 {
        let live = live();
        let far_link = far.link.clone().unwrap();
        let letting_in = async {
            let (delivered, application) = delivered().await;
            let mut delivered = Err(delivered);
            while let Err(again) = delivered {
                tokio::task::yield_now().await;
                delivered = far_link.hand_over(again);
            }
            far.try_flush().await.unwrap();
            application
        };
        let both = async { tokio::join!(link.open(&mut near, &live), letting_in) };
        let (opened_stream, _application) = timeout(PATIENCE, both).await.unwrap();
        assert!(opened_stream.is_some());
        assert!(near.is_usable());
        near.queue(&Control::open(([127, 0, 0, 1], 4000).into())).unwrap();
        poll_fn(|cx| near.poll_flush(cx)).await.unwrap();
        timeout(PATIENCE, opened(&mut far)).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_has_its_tickets_when_its_stream_is_handed_over() {
    let (mut near, mut far) = linked().await;
    let (link, live) = (near.link.clone().unwrap(), live());
    assert!(near.awaits_tickets());
    let letting_in = async {
        let (delivered, application) = delivered().await;
        (hand_over(&mut far, delivered).await.unwrap().unwrap(), application)
    };
    let both = async { tokio::join!(link.open(&mut near, &live), letting_in) };
    let (opened_stream, _) = timeout(PATIENCE, both).await.unwrap();
    assert!(opened_stream.is_some());
    assert!(!near.awaits_tickets(), "others wait for them");
    assert!(near.is_usable());
}

#[tokio::test]
async fn what_comes_with_the_tickets_out_of_turn_is_not_lost() {
    let (mut near, mut far) = linked().await;
    let (link, live) = (near.link.clone().unwrap(), live());
    far.queue(&Control::end()).unwrap();
    let letting_in = async {
        let (delivered, application) = delivered().await;
        (hand_over(&mut far, delivered).await.unwrap().unwrap(), application)
    };
    let both = async { tokio::join!(link.open(&mut near, &live), letting_in) };
    timeout(PATIENCE, both).await.unwrap();
    assert!(!near.awaits_tickets());
    assert!(!near.is_usable(), "a later stream would take this END for its own");
}

#[tokio::test]
async fn a_refusal_comes_with_its_reason() {
    let (mut near, far) = linked().await;
    let link = near.link.clone().unwrap();
    let live = live();
    far.reset(ResetReason::Denied);
    let opened = timeout(PATIENCE, link.open(&mut near, &live)).await.unwrap();
    assert!(opened.is_none());
    let (_client, mut application) = tcp_pair().await;
    let relay = Relay::new(&mut application, &mut near, &live, Side::Client, &[]);
    let outcome = timeout(PATIENCE, relay.run()).await.unwrap();
    assert!(matches!(outcome, Outcome::Peer(ResetReason::Denied)), "{outcome:?}");
}

#[tokio::test]
async fn a_stream_that_nobody_waits_for_is_given_back() {
    let (mut near, far) = linked().await;
    let link = near.link.clone().unwrap();
    let live = live();
    // Before the client waits, and after it was told to stop waiting.
    let (stream, _application) = delivered().await;
    let stream = far.link.as_ref().unwrap().hand_over(stream).unwrap_err();
    live.cut(ResetReason::PolicyChanged);
    assert!(timeout(PATIENCE, link.open(&mut near, &live)).await.unwrap().is_none());
    far.link.as_ref().unwrap().hand_over(stream).unwrap_err();
}

#[tokio::test]
async fn a_server_that_goes_away_ends_the_waiting() {
    let (mut near, far) = linked().await;
    let link = near.link.clone().unwrap();
    let live = live();
    let waiting = link.open(&mut near, &live);
    let (opened, ()) = tokio::join!(timeout(PATIENCE, waiting), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(far);
    });
    assert!(opened.unwrap().is_none());
}

#[tokio::test]
async fn a_stream_that_is_dropped_on_its_way_ends_for_the_application() {
    let (stream, mut application) = delivered().await;
    drop(stream);
    assert_eq!(timeout(PATIENCE, application.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
}
