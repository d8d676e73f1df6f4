//! Both ends of real connections on loopback.

use std::{net::Ipv4Addr, time::Duration};

use socket2::SockRef;
use tokio::{io::AsyncReadExt, time::timeout};

use super::*;
use crate::socket::{listen, tcp_socket};

/// More than anything here takes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Returns an application's end of a connection, and ours.
async fn pair() -> (std::net::TcpStream, TcpStream) {
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), 1).unwrap();
    let application = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    application.set_nodelay(true).unwrap();
    let listener = TcpListener::from_std(listener).unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    assert_eq!(peer, application.local_addr().unwrap());
    (application, stream)
}

async fn read(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length + 1];
    let mut read = 0;
    while read < length {
        let more = timeout(PATIENCE, stream.read(&mut bytes[read..])).await;
        read += more.expect("bytes stay unread").unwrap();
    }
    bytes.truncate(read);
    bytes
}

fn send_urgent(mut application: &std::net::TcpStream) {
    application.write_all(b"before").unwrap();
    SockRef::from(application).send_out_of_band(b"!").unwrap();
    application.write_all(b"behind").unwrap();
}

#[tokio::test]
async fn what_is_behind_an_urgent_byte_is_read() {
    let (application, mut stream) = pair().await;
    for _ in 0..3 {
        send_urgent(&application);
        assert_eq!(read(&mut stream, 13).await, b"before!behind");
    }
}

#[tokio::test]
async fn it_is_read_if_the_runtime_has_heard_of_earlier_bytes_only() {
    let (mut application, mut stream) = pair().await;
    application.write_all(b"first").unwrap();
    // The runtime hears of these, and nothing reads them.
    tokio::time::sleep(Duration::from_millis(20)).await;
    send_urgent(&application);
    assert_eq!(read(&mut stream, 18).await, b"firstbefore!behind");
}

#[tokio::test]
async fn nothing_is_left_after_a_read_without_urgent_bytes() {
    let (mut application, stream) = pair().await;
    application.write_all(b"request").unwrap();
    let mut room = [0; 100];
    let read = std::future::poll_fn(|cx| stream.poll_receive(cx, &mut room)).await.unwrap();
    assert_eq!(read, 7);
    let again = stream.0.try_io(Interest::READABLE, |_| Ok(()));
    assert_eq!(again.unwrap_err().kind(), ErrorKind::WouldBlock, "it is read once more in vain");
}

#[tokio::test]
async fn a_connection_that_is_refused_is_an_error() {
    let nobody = listen((Ipv4Addr::LOCALHOST, 0).into(), 1).unwrap().local_addr().unwrap();
    let refused = TcpStream::connect(tcp_socket(false).unwrap(), nobody).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
}
