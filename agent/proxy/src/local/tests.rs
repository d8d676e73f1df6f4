//! Real sessions whose two ends do, or do not, share a process.

use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::{
    pod::Pod,
    testing::{PATIENCE, live, local_pod, opened, sessions},
};
use sluice_wire::Control;

async fn linked() -> (Session, Session) {
    let links = Arc::default();
    let (near, mut far) = sessions(&links, &links).await;
    opened(&mut far).await;
    assert!(lock(&links.0).is_empty(), "an announcement outlived its handshake");
    (near, far)
}

/// Opens the server's end.
fn offer(far: &Session) -> Offer {
    let pod = Arc::new(Pod::new(Arc::new(local_pod()), Arc::default(), Arc::default()));
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

/// Lets the client look for the server in a task of its own, which has to be woken.
async fn looking(mut near: Session, live: Arc<Live>) -> tokio::task::JoinHandle<(Session, Found)> {
    let link = near.link.clone().unwrap();
    let looking = tokio::spawn(async move {
        let found = link.host(&mut near, &live).await;
        (near, found)
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!looking.is_finished(), "the server has not accepted anybody");
    looking
}

#[tokio::test]
async fn a_client_finds_the_server_once_that_has_accepted_it_and_as_often_as_it_likes() {
    let (near, mut far) = linked().await;
    let (link, live) = (near.link.clone().unwrap(), Arc::new(live()));
    // Before it looks: their arrival would wake it too.
    far.try_flush().await.unwrap();
    let looking = looking(near, Arc::clone(&live)).await;
    let offer = offer(&far);
    let (mut near, found) = timeout(PATIENCE, looking).await.expect("not woken").unwrap();
    assert!(matches!(found, Found::Host(_)));
    for _ in 0..3 {
        assert!(matches!(link.host(&mut near, &live).await, Found::Host(_)));
        assert!(near.is_usable());
    }
    drop(offer);
    assert!(!near.is_usable(), "the server has ended the session");
    let late = timeout(PATIENCE, link.host(&mut near, &live)).await.unwrap();
    assert!(matches!(late, Found::Ended), "{late:?}: nothing of this is on the network yet");
}

#[tokio::test]
async fn a_client_has_its_tickets_when_it_has_found_the_server() {
    let (mut near, mut far) = linked().await;
    let (link, live) = (near.link.clone().unwrap(), live());
    assert!(near.awaits_tickets());
    far.try_flush().await.unwrap();
    let _offer = offer(&far);
    timeout(PATIENCE, link.host(&mut near, &live)).await.unwrap();
    assert!(!near.awaits_tickets(), "others wait for them");
    assert!(near.is_usable());
}

#[tokio::test]
async fn what_comes_with_the_tickets_out_of_turn_is_not_lost() {
    let (mut near, mut far) = linked().await;
    let (link, live) = (near.link.clone().unwrap(), live());
    far.queue(&Control::end()).unwrap();
    far.try_flush().await.unwrap();
    let _offer = offer(&far);
    timeout(PATIENCE, link.host(&mut near, &live)).await.unwrap();
    assert!(!near.awaits_tickets());
    assert!(!near.is_usable(), "a later stream would take this END for its own");
}

#[tokio::test]
async fn a_connection_that_is_cut_waits_no_longer() {
    let (near, _far) = linked().await;
    let live = Arc::new(live());
    let looking = looking(near, Arc::clone(&live)).await;
    live.cut(ResetReason::PolicyChanged);
    let (_, found) = timeout(PATIENCE, looking).await.expect("not woken").unwrap();
    assert!(matches!(found, Found::Cut(ResetReason::PolicyChanged)), "{found:?}");
}

#[tokio::test]
async fn a_server_that_goes_away_ends_the_waiting() {
    let (near, far) = linked().await;
    let looking = looking(near, Arc::new(live())).await;
    drop(far);
    let (_, found) = timeout(PATIENCE, looking).await.expect("not woken").unwrap();
    assert!(matches!(found, Found::Nothing), "{found:?}");
}
