//! Real sessions whose two ends do, or do not, share a process.

use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::{
    pod::Pod,
    relay::{Outcome, Relay, Side},
    retirement::Retirement,
    testing::{PATIENCE, live, local_pod, opened, sessions, tcp_pair},
};
use sluice_wire::{Control, ResetReason};

async fn linked() -> (Session, Session) {
    let links = Arc::default();
    let (near, mut far) = sessions(&links, &links).await;
    opened(&mut far).await;
    assert!(lock(&links.0).is_empty(), "an announcement outlived its handshake");
    (near, far)
}

/// Opens the server's end, of a pod that is there for as long as `departure` has not begun.
fn offer(far: &Session, departure: &Arc<Retirement>) -> Offer {
    let pod = Arc::new(Pod::new(Arc::new(local_pod()), Arc::default(), Arc::clone(departure)));
    let address = ([127, 0, 0, 1], 1).into();
    far.link.clone().unwrap().offer(Host::new(&pod, address, address, far.peer.clone()))
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
async fn a_client_finds_the_server_once_that_has_accepted_it_and_as_often_as_it_likes() {
    let (mut near, far) = linked().await;
    let (link, live) = (near.link.clone().unwrap(), live());
    let early = timeout(Duration::from_millis(20), link.host(&mut near, &live)).await;
    assert!(early.is_err(), "the server has not accepted anybody");
    let departure = Arc::default();
    let (found, offer) = tokio::join!(timeout(PATIENCE, link.host(&mut near, &live)), async {
        tokio::task::yield_now().await;
        offer(&far, &departure)
    });
    assert!(matches!(found.unwrap(), Found::Host(_)));
    for _ in 0..3 {
        assert!(matches!(link.host(&mut near, &live).await, Found::Host(_)));
        assert!(near.is_usable());
    }
    drop(offer);
    let late = timeout(PATIENCE, link.host(&mut near, &live)).await.unwrap();
    assert!(matches!(late, Found::Ended), "{late:?}: nothing of this is on the network yet");
}

#[tokio::test]
async fn a_pod_that_has_gone_is_not_found() {
    let (mut near, far) = linked().await;
    let (link, live, departure) = (near.link.clone().unwrap(), live(), Arc::default());
    let _offer = offer(&far, &departure);
    assert!(matches!(link.host(&mut near, &live).await, Found::Host(_)));
    departure.begin();
    assert!(matches!(link.host(&mut near, &live).await, Found::Ended));
}

#[tokio::test]
async fn a_client_has_its_tickets_when_it_has_found_the_server() {
    let (mut near, mut far) = linked().await;
    let (link, live) = (near.link.clone().unwrap(), live());
    assert!(near.awaits_tickets());
    far.try_flush().await.unwrap();
    let _offer = offer(&far, &Arc::default());
    let found = timeout(PATIENCE, link.host(&mut near, &live)).await.unwrap();
    assert!(matches!(found, Found::Host(_)));
    assert!(!near.awaits_tickets(), "others wait for them");
    assert!(near.is_usable());
}

#[tokio::test]
async fn what_comes_with_the_tickets_out_of_turn_is_not_lost() {
    let (mut near, mut far) = linked().await;
    let (link, live) = (near.link.clone().unwrap(), live());
    far.queue(&Control::end()).unwrap();
    far.try_flush().await.unwrap();
    let _offer = offer(&far, &Arc::default());
    timeout(PATIENCE, link.host(&mut near, &live)).await.unwrap();
    assert!(!near.awaits_tickets());
    assert!(!near.is_usable(), "a later stream would take this END for its own");
}

#[tokio::test]
async fn a_refusal_comes_with_its_reason() {
    let (mut near, far) = linked().await;
    let link = near.link.clone().unwrap();
    let live = live();
    far.reset(ResetReason::Denied);
    let found = timeout(PATIENCE, link.host(&mut near, &live)).await.unwrap();
    assert!(matches!(found, Found::Nothing));
    let (_client, mut application) = tcp_pair().await;
    let relay = Relay::new(&mut application, &mut near, &live, Side::Client, &[]);
    let outcome = timeout(PATIENCE, relay.run()).await.unwrap();
    assert!(matches!(outcome, Outcome::Peer(ResetReason::Denied)), "{outcome:?}");
}

#[tokio::test]
async fn a_connection_that_is_cut_waits_no_longer() {
    let (mut near, _far) = linked().await;
    let (link, live) = (near.link.clone().unwrap(), live());
    let (found, ()) = tokio::join!(timeout(PATIENCE, link.host(&mut near, &live)), async {
        tokio::task::yield_now().await;
        live.cut(ResetReason::PolicyChanged);
    });
    assert!(matches!(found.unwrap(), Found::Nothing));
}

#[tokio::test]
async fn a_server_that_goes_away_ends_the_waiting() {
    let (mut near, far) = linked().await;
    let link = near.link.clone().unwrap();
    let live = live();
    let (found, ()) = tokio::join!(timeout(PATIENCE, link.host(&mut near, &live)), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(far);
    });
    assert!(matches!(found.unwrap(), Found::Nothing));
}
