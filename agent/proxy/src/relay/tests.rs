//! Two relays back to back over real sockets and real mutual TLS; only the kernel's hooks are absent.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use super::*;
use crate::testing::{PATIENCE, live, opened, pattern, session_pair, tcp_pair};

/// An application on each side and what is between them; each relay gives its session back.
pub(super) struct Stream {
    pub(super) client: tokio::net::TcpStream,
    pub(super) server: tokio::net::TcpStream,
    pub(super) near: tokio::task::JoinHandle<(Outcome, Session, u64, u64)>,
    pub(super) far: tokio::task::JoinHandle<(Outcome, Session)>,
}

pub(super) async fn stream(
    (mut near_session, mut far_session): (Session, Session),
    head: &'static [u8],
) -> Stream {
    let (client, mut near_application) = tcp_pair().await;
    let (server, mut far_application) = tcp_pair().await;
    let near = tokio::spawn(async move {
        let live = live();
        let outcome =
            Relay::new(&mut near_application, &mut near_session, &live, Side::Client, head)
                .run()
                .await;
        if !matches!(outcome, Outcome::Clean) {
            sluice_sys::socket::set_reset_on_close(&near_application).unwrap();
        }
        (outcome, near_session, live.sent(), live.received())
    });
    let far = tokio::spawn(async move {
        let live = live();
        let outcome = Relay::new(&mut far_application, &mut far_session, &live, Side::Server, &[])
            .run()
            .await;
        if !matches!(outcome, Outcome::Clean) {
            sluice_sys::socket::set_reset_on_close(&far_application).unwrap();
        }
        (outcome, far_session)
    });
    Stream { client, server, near, far }
}

pub(super) async fn exchange(
    sessions: (Session, Session),
    up: usize,
    down: usize,
) -> (Session, Session) {
    let Stream { client, server, near, far } = stream(sessions, b"head").await;
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let send_up = tokio::spawn(async move {
        client_write.write_all(&pattern(up, 1)).await.unwrap();
        client_write.shutdown().await.unwrap();
        client_write
    });
    let send_down = tokio::spawn(async move {
        server_write.write_all(&pattern(down, 2)).await.unwrap();
        server_write.shutdown().await.unwrap();
        server_write
    });
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let both = async {
        tokio::try_join!(
            server_read.read_to_end(&mut got_up),
            client_read.read_to_end(&mut got_down)
        )
    };
    timeout(PATIENCE, both).await.unwrap().unwrap();
    assert_eq!(got_up, [&b"head"[..], &pattern(up, 1)].concat());
    assert_eq!(got_down, pattern(down, 2));
    let (near_outcome, near_session, sent, received) = near.await.unwrap();
    let (far_outcome, far_session) = far.await.unwrap();
    assert!(matches!(near_outcome, Outcome::Clean), "{near_outcome:?}");
    assert!(matches!(far_outcome, Outcome::Clean), "{far_outcome:?}");
    assert_eq!((sent, received), (up as u64 + 4, down as u64));
    drop((send_up.await, send_down.await));
    (near_session, far_session)
}

#[tokio::test]
async fn one_session_carries_stream_after_stream_exactly() {
    let mut sessions = session_pair().await;
    for (up, down) in
        [(0, 0), (1, 70_000), (3_000_000, 5), (65_536, 65_537), (2_000_000, 2_000_000)]
    {
        let (mut near, mut far) = exchange(sessions, up, down).await;
        assert!(near.is_usable(), "after {up} up and {down} down");
        near.queue(&Control::open(([127, 0, 0, 1], 4000).into())).unwrap();
        poll_fn(|cx| near.poll_flush(cx)).await.unwrap();
        opened(&mut far).await;
        sessions = (near, far);
    }
}

#[tokio::test]
async fn a_cut_connection_never_looks_like_a_clean_end() {
    let Stream { mut client, server: _server, near, far } =
        stream(session_pair().await, b"x").await;
    far.abort();
    let (outcome, ..) = timeout(PATIENCE, near).await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Broken(_)), "{outcome:?}");
    assert_eq!(client.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_farewell_before_any_answer_leaves_the_stream_unseen() {
    let (near, far) = session_pair().await;
    far.close();
    let (mut client, mut application) = tcp_pair().await;
    client.write_all(b"request").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut session, live) = (near, live());
    // The relay takes only the end from the application, and the end can be read again for another session.
    let mut head = [0; 7];
    application.read_exact(&mut head).await.unwrap();
    let relay = Relay::new(&mut application, &mut session, &live, Side::Client, &head);
    let outcome = timeout(PATIENCE, relay.run()).await.unwrap();
    assert!(matches!(outcome, Outcome::Unseen), "{outcome:?}");
    assert_eq!(live.sent(), 0, "whoever carries it again counts it again");
}

/// The near end of a session whose far end has torn the stream down, and a kernel that answers whatever comes.
async fn torn_down(reason: ResetReason) -> Session {
    let (mut session, far) = session_pair().await;
    // Unread when the socket is closed, so that the reason is followed by a reset.
    session.queue(&Control::open(([127, 0, 0, 1], 4000).into())).unwrap();
    poll_fn(|cx| session.poll_flush(cx)).await.unwrap();
    far.reset(reason);
    tokio::time::sleep(Duration::from_millis(50)).await;
    session
}

#[tokio::test]
async fn the_peers_reason_is_heard_although_a_write_fails_in_the_same_turn() {
    let mut session = torn_down(ResetReason::Denied).await;
    let (_client, mut application) = tcp_pair().await;
    let live = live();
    let relay = Relay::new(&mut application, &mut session, &live, Side::Client, b"request");
    let outcome = timeout(PATIENCE, relay.run()).await.unwrap();
    assert!(matches!(outcome, Outcome::Peer(ResetReason::Denied)), "{outcome:?}");
}

#[tokio::test]
async fn the_peers_reason_is_heard_although_a_write_has_failed_before() {
    let mut session = torn_down(ResetReason::Denied).await;
    let (_client, mut application) = tcp_pair().await;
    let live = live();
    let mut relay = Relay::new(&mut application, &mut session, &live, Side::Client, b"");
    relay.committed = true;
    let failed = Broken::Socket(io::ErrorKind::BrokenPipe.into());
    let outcome = timeout(PATIENCE, relay.explain(failed)).await.unwrap();
    assert!(matches!(outcome, Outcome::Peer(ResetReason::Denied)), "{outcome:?}");
}

#[tokio::test]
async fn a_session_that_its_peer_has_ended_is_not_free_because_the_application_has_gone_too() {
    let (mut session, far) = session_pair().await;
    let (client, mut application) = tcp_pair().await;
    far.reset(ResetReason::PolicyChanged);
    sluice_sys::socket::set_reset_on_close(&client).unwrap();
    drop(client);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let live = live();
    let relay = Relay::new(&mut application, &mut session, &live, Side::Client, &[]);
    let outcome = timeout(PATIENCE, relay.run()).await.unwrap();
    assert!(matches!(outcome, Outcome::Peer(ResetReason::PolicyChanged)), "{outcome:?}");
}

/// The client's session, after the server has ended and then its client has sent so much.
async fn after_sending_to_an_end(length: usize) -> Session {
    let Stream { mut client, mut server, near, far } = stream(session_pair().await, b"").await;
    server.shutdown().await.unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    let mut got = Vec::new();
    let bytes = pattern(length, 1);
    let send = async {
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let both = async { tokio::join!(send, server.read_to_end(&mut got)).1 };
    timeout(PATIENCE, both).await.unwrap().unwrap();
    assert_eq!(got, bytes);
    let (outcome, session, ..) = near.await.unwrap();
    assert!(matches!(outcome, Outcome::Clean), "{outcome:?}");
    drop(far.await);
    session
}

#[tokio::test]
async fn a_session_is_not_for_another_while_its_peer_may_be_busy_with_what_it_was_sent() {
    assert!(!after_sending_to_an_end(1000).await.is_far_ahead());
    assert!(after_sending_to_an_end(1_000_000).await.is_far_ahead());
    // Whoever answers behind what it was sent has read it.
    let Stream { mut client, mut server, near, far } = stream(session_pair().await, b"").await;
    let ask = async {
        client.write_all(&pattern(1_000_000, 1)).await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let answer = async {
        server.read_exact(&mut vec![0; 1_000_000]).await.unwrap();
        server.write_all(b"answer").await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    };
    timeout(PATIENCE, async { tokio::join!(ask, answer) }).await.unwrap();
    assert!(!near.await.unwrap().1.is_far_ahead());
    drop(far.await);
}

#[tokio::test]
async fn closing_a_session_over_unread_bytes_does_not_take_back_what_it_sends() {
    let (mut near, mut far) = session_pair().await;
    let length = 200_000;
    let sending = tokio::spawn(async move {
        let bytes = pattern(1000, 1);
        let frame = [&data_header(bytes.len()).unwrap()[..], &bytes].concat();
        let mut outgoing = Vec::new();
        for _ in 0..length / bytes.len() {
            poll_fn(|cx| near.poll_flush(cx)).await.unwrap();
            poll_fn(|cx| Poll::Ready(near.poll_send(cx, &frame, &mut outgoing))).await.unwrap();
        }
        poll_fn(|cx| near.poll_flush(cx)).await.unwrap();
        near
    });
    let near = timeout(PATIENCE, sending).await.unwrap().unwrap();
    // Tickets, which the far end has had since its handshake.
    poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    near.close();
    let (mut got, mut said) = (0, Ok(()));
    while said.is_ok() {
        said = poll_fn(|cx| {
            Scratch::lend(|scratch| {
                let received = ready!(far.poll_receive(cx, scratch));
                got += scratch.plaintext.len();
                Poll::Ready(received)
            })
        })
        .await;
    }
    assert!(matches!(said, Err(Broken::Closed)), "{said:?}");
    assert_eq!(got, length + length / 1000 * HEADER_LENGTH);
}

#[tokio::test]
async fn a_farewell_is_heard_although_writing_fails_first() {
    let (mut session, far) = session_pair().await;
    far.close();
    // Arrives at a socket that is closed, whose kernel resets the connection.
    session.queue(&Control::open(([127, 0, 0, 1], 4000).into())).unwrap();
    poll_fn(|cx| session.poll_flush(cx)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (mut client, mut application) = tcp_pair().await;
    client.write_all(b"request").await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (live, mut kept) = (live(), Vec::new());
    let relay = Relay::new(&mut application, &mut session, &live, Side::Client, &[]);
    let outcome = timeout(PATIENCE, relay.keeping(&mut kept).run()).await.unwrap();
    assert!(matches!(outcome, Outcome::Unseen), "{outcome:?}");
    assert_eq!(kept, b"request");
}

#[tokio::test]
async fn what_came_after_the_head_is_kept_for_another_session_up_to_a_bound() {
    for (length, repeatable) in [(7, true), (MAX_KEPT, true), (MAX_KEPT + 1, false)] {
        let (mut session, far) = session_pair().await;
        far.close();
        let (mut client, mut application) = tcp_pair().await;
        let request = pattern(length, 1);
        client.write_all(&request).await.unwrap();
        client.shutdown().await.unwrap();
        let (live, mut kept) = (live(), Vec::new());
        let relay = Relay::new(&mut application, &mut session, &live, Side::Client, &[]);
        let outcome = timeout(PATIENCE, relay.keeping(&mut kept).run()).await.unwrap();
        if repeatable {
            assert!(matches!(outcome, Outcome::Unseen), "{length}: {outcome:?}");
            // The farewell may arrive before everything was read.
            assert!(request.starts_with(&kept), "{length}");
        } else if !matches!(outcome, Outcome::Unseen) {
            assert!(kept.is_empty(), "{length}: {} bytes are kept", kept.len());
        }
    }
}

#[tokio::test]
async fn a_stalled_reader_stops_the_sender_instead_of_filling_memory() {
    let Stream { mut client, server, near, far } = stream(session_pair().await, b"").await;
    let chunk = pattern(1 << 20, 3);
    let mut taken = 0_usize;
    while let Ok(written) = timeout(Duration::from_millis(500), client.write(&chunk)).await {
        taken += written.unwrap();
        assert!(taken < 256 << 20, "{taken} bytes were swallowed for a reader that reads nothing");
    }
    drop((server, near, far));
}
