//! What a reset leaves behind: an application that has been told, and a session that carries another stream exactly.

use std::time::Instant;

use sluice_wire::data_header;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::*;
use crate::{
    relay::{
        Side,
        tests::{Stream, exchange, stream},
    },
    testing::{PATIENCE, live, pattern, session_pair, tcp_pair},
};

/// More than the buffers of both ends hold.
const PLENTY: usize = 64 << 20;

fn reset(application: TcpStream) {
    sluice_sys::socket::set_reset_on_close(&application).unwrap();
    drop(application);
}

/// Writes until nobody takes it any more. Returns the kind of error that ended it.
async fn write_on(application: &mut TcpStream) -> io::ErrorKind {
    let chunk = pattern(1 << 16, 3);
    for _ in 0..PLENTY >> 16 {
        match timeout(PATIENCE, application.write_all(&chunk)).await.unwrap() {
            Ok(()) => {}
            Err(error) => return error.kind(),
        }
    }
    panic!("all of it was taken");
}

async fn read_on(application: &mut TcpStream) -> io::ErrorKind {
    let mut bytes = Vec::new();
    let read = timeout(PATIENCE, application.read_to_end(&mut bytes)).await.unwrap();
    read.expect_err("the stream ended in order").kind()
}

/// Checks that both ends agree on who has reset the stream, and that their session can go on.
async fn carries_on(
    near: tokio::task::JoinHandle<(Outcome, crate::session::Session, u64, u64)>,
    far: tokio::task::JoinHandle<(Outcome, crate::session::Session)>,
    by_client: bool,
) {
    let (outcome, near, ..) = timeout(PATIENCE, near).await.unwrap().unwrap();
    let own = matches!(outcome, Outcome::Reset(Resetter::Own(_)));
    assert!(own == by_client && matches!(outcome, Outcome::Reset(_)), "near: {outcome:?}");
    let (outcome, far) = timeout(PATIENCE, far).await.unwrap().unwrap();
    let own = matches!(outcome, Outcome::Reset(Resetter::Own(_)));
    assert!(own != by_client && matches!(outcome, Outcome::Reset(_)), "far: {outcome:?}");
    exchange((near, far), 100_000, 100_000).await;
}

#[tokio::test]
async fn a_reset_at_one_end_is_a_reset_at_the_other_and_the_session_goes_on() {
    for by_client in [true, false] {
        let Stream { mut client, mut server, near, far } = stream(session_pair().await, b"x").await;
        assert_eq!(server.read_u8().await.unwrap(), b'x');
        server.write_all(b"y").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'y');
        let mut other = if by_client {
            reset(client);
            server
        } else {
            reset(server);
            client
        };
        assert_eq!(read_on(&mut other).await, io::ErrorKind::ConnectionReset);
        carries_on(near, far, by_client).await;
    }
}

#[tokio::test]
async fn a_reset_is_heard_by_an_end_that_is_busy_sending() {
    for by_client in [true, false] {
        let Stream { client, server, near, far } = stream(session_pair().await, b"x").await;
        let (resets, mut sends) = if by_client { (client, server) } else { (server, client) };
        let sending = tokio::spawn(async move {
            let kind = write_on(&mut sends).await;
            assert!(
                matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe),
                "{kind:?}"
            );
        });
        // Waits until every buffer on the way is full.
        tokio::time::sleep(Duration::from_millis(300)).await;
        reset(resets);
        timeout(PATIENCE, sending).await.unwrap().unwrap();
        carries_on(near, far, by_client).await;
    }
}

#[tokio::test]
async fn an_end_that_has_heard_the_others_last_word_resets_at_once() {
    let Stream { mut client, mut server, near, far } = stream(session_pair().await, b"x").await;
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    server.shutdown().await.unwrap();
    let mut nothing = Vec::new();
    timeout(PATIENCE, client.read_to_end(&mut nothing)).await.unwrap().unwrap();
    reset(client);
    assert_eq!(read_on(&mut server).await, io::ErrorKind::ConnectionReset);
    carries_on(near, far, true).await;
}

#[tokio::test]
async fn both_may_reset_at_once() {
    let Stream { client, server, near, far } = stream(session_pair().await, b"").await;
    reset(client);
    reset(server);
    let (outcome, near, ..) = timeout(PATIENCE, near).await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Reset(_)), "{outcome:?}");
    let (outcome, far) = timeout(PATIENCE, far).await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Reset(_)), "{outcome:?}");
    exchange((near, far), 1000, 1000).await;
}

#[tokio::test]
async fn a_reset_after_the_end_ends_the_session_which_no_later_stream_may_feel() {
    let Stream { mut client, mut server, near, far } = stream(session_pair().await, b"x").await;
    assert_eq!(server.read_u8().await.unwrap(), b'x');
    client.shutdown().await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    // Half closed, and gone before the answer.
    reset(client);
    let sending = tokio::spawn(async move { write_on(&mut server).await });
    let (outcome, near, ..) = timeout(PATIENCE, near).await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Application(_)), "{outcome:?}");
    near.close();
    let (outcome, _) = timeout(PATIENCE, far).await.unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Broken(_) | Outcome::Unseen), "{outcome:?}");
    let kind = timeout(PATIENCE, sending).await.unwrap().unwrap();
    assert!(matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{kind:?}");
}

#[tokio::test]
async fn a_peer_that_does_not_answer_is_not_waited_for_long() {
    let (mut session, far) = session_pair().await;
    let (client, mut application) = tcp_pair().await;
    reset(client);
    let (live, began) = (live(), Instant::now());
    let relay = Relay::new(&mut application, &mut session, &live, Side::Client, &[]);
    let outcome = timeout(PATIENCE, relay.run()).await.unwrap();
    assert!(matches!(outcome, Outcome::Application(_)), "{outcome:?}");
    assert!(began.elapsed() >= PARTING_TIME);
    drop(far);
}

#[tokio::test]
async fn a_peer_that_goes_on_sending_is_not_listened_to_forever() {
    let (mut session, mut far) = session_pair().await;
    let (client, mut application) = tcp_pair().await;
    reset(client);
    let flood = tokio::spawn(async move {
        let bytes = pattern(16 << 10, 5);
        let frame = [&data_header(bytes.len()).unwrap()[..], &bytes].concat();
        let (mut sent, mut outgoing) = (0, Vec::new());
        let mut write = |cx: &mut Context<'_>| {
            ready!(far.poll_flush(cx))?;
            Poll::Ready(far.poll_send(cx, &frame, &mut outgoing))
        };
        while poll_fn(&mut write).await.is_ok() {
            sent += frame.len();
        }
        sent
    });
    let live = live();
    let relay = Relay::new(&mut application, &mut session, &live, Side::Client, &[]);
    let outcome = timeout(PATIENCE, relay.run()).await.unwrap();
    assert!(matches!(outcome, Outcome::Application(_)), "{outcome:?}");
    drop(session);
    let sent = timeout(PATIENCE, flood).await.unwrap().unwrap();
    assert!(sent < PLENTY, "{sent} bytes were passed over");
}
