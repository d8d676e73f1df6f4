//! Two applications with real sockets and one relay between them.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
    time::timeout,
};

use super::*;
use crate::testing::{PATIENCE, live, pattern, tcp_pair};

/// Both applications, the records of both ends, and what is between them.
struct Carried {
    client: tokio::net::TcpStream,
    server: tokio::net::TcpStream,
    lives: [Arc<Live>; 2],
    relay: JoinHandle<PlainEnd>,
}

async fn carried(head: &'static [u8]) -> Carried {
    let (client, mut near) = tcp_pair().await;
    let (server, mut far) = tcp_pair().await;
    let lives = [Arc::new(live()), Arc::new(live())];
    let relay = tokio::spawn({
        let lives = lives.clone();
        async move {
            let [first, second] = &lives;
            let end = super::relay(&mut near, &mut far, &[first, second], head.to_vec()).await;
            if !matches!(end, PlainEnd::Clean) {
                sluice_sys::socket::set_reset_on_close(&near).unwrap();
                sluice_sys::socket::set_reset_on_close(&far).unwrap();
            }
            end
        }
    });
    Carried { client, server, lives, relay }
}

#[tokio::test]
async fn either_end_may_finish_first_and_every_byte_arrives_and_is_counted() {
    for (up, down) in [(0, 0), (5, 0), (0, 70_000), (3_000_000, 1), (2_000_000, 2_000_000)] {
        let Carried { client, server, lives, relay } = carried(b"head").await;
        let (mut client_read, mut client_write) = client.into_split();
        let (mut server_read, mut server_write) = server.into_split();
        let (sent, answered) = (pattern(up, 1), pattern(down, 2));
        let send_up = async {
            client_write.write_all(&sent).await.unwrap();
            client_write.shutdown().await.unwrap();
        };
        let send_down = async {
            server_write.write_all(&answered).await.unwrap();
            server_write.shutdown().await.unwrap();
        };
        let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
        let receive_up = async { server_read.read_to_end(&mut got_up).await.unwrap() };
        let receive_down = async { client_read.read_to_end(&mut got_down).await.unwrap() };
        let all = async { tokio::join!(send_up, send_down, receive_up, receive_down) };
        timeout(PATIENCE, all).await.unwrap();
        let end = timeout(PATIENCE, relay).await.unwrap().unwrap();
        assert!(matches!(end, PlainEnd::Clean), "{end:?}");
        assert_eq!((got_up, got_down), ([b"head", &sent[..]].concat(), answered));
        for live in lives {
            assert_eq!((live.sent(), live.received()), (up as u64 + 4, down as u64));
        }
    }
}

#[tokio::test]
async fn a_half_close_lets_the_other_direction_go_on() {
    for first in [Side::Client, Side::Server] {
        let Carried { client, server, relay, .. } = carried(b"").await;
        let (mut early, mut late) =
            if first == Side::Client { (client, server) } else { (server, client) };
        early.shutdown().await.unwrap();
        assert_eq!(timeout(PATIENCE, late.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
        for byte in 0..3 {
            late.write_u8(byte).await.unwrap();
            assert_eq!(timeout(PATIENCE, early.read_u8()).await.unwrap().unwrap(), byte);
        }
        drop(late);
        assert!(matches!(timeout(PATIENCE, relay).await.unwrap().unwrap(), PlainEnd::Clean));
    }
}

#[tokio::test]
async fn a_reset_on_one_side_is_a_reset_on_the_other_and_says_whose() {
    for resets in [Side::Client, Side::Server] {
        let Carried { client, server, relay, .. } = carried(b"").await;
        let (gone, mut other) =
            if resets == Side::Client { (client, server) } else { (server, client) };
        sluice_sys::socket::set_reset_on_close(&gone).unwrap();
        drop(gone);
        let end = timeout(PATIENCE, relay).await.unwrap().unwrap();
        assert!(matches!(end, PlainEnd::Socket(side, _) if side == resets), "{end:?}");
        let error = timeout(PATIENCE, other.read_u8()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn either_record_can_end_the_connection() {
    for end in 0..2 {
        let Carried { mut client, mut server, lives, relay } = carried(b"").await;
        lives[end].cut(ResetReason::PolicyChanged);
        let outcome = timeout(PATIENCE, relay).await.unwrap().unwrap();
        assert!(matches!(outcome, PlainEnd::Cut(ResetReason::PolicyChanged)), "{outcome:?}");
        for socket in [&mut client, &mut server] {
            let error = timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}

#[tokio::test]
async fn a_stalled_reader_stops_the_sender_and_nothing_spins() {
    let Carried { mut client, server, lives, relay } = carried(b"").await;
    let chunk = pattern(1 << 20, 3);
    let mut taken = 0_usize;
    while let Ok(written) = timeout(Duration::from_millis(500), client.write(&chunk)).await {
        taken += written.unwrap();
        assert!(taken < 64 << 20, "{taken} bytes were swallowed for a reader that reads nothing");
    }
    let before = lives[0].sent();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(lives[0].sent(), before);
    // What was taken arrives when the reader wakes up.
    drop(client);
    let mut server = server;
    let (mut got, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        match timeout(PATIENCE, server.read(&mut buffer)).await.unwrap().unwrap() {
            0 => break,
            read => got += read,
        }
    }
    assert_eq!(got, taken);
    drop((server, relay));
}
