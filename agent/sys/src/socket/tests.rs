//! The options that the proxy relies on.

use std::{
    io::{ErrorKind, Read},
    net::{Ipv4Addr, Ipv6Addr, TcpStream},
    os::fd::AsFd,
    thread,
};

use super::*;

fn loopback(ipv6: bool) -> SocketAddr {
    if ipv6 { (Ipv6Addr::LOCALHOST, 0).into() } else { (Ipv4Addr::LOCALHOST, 0).into() }
}

fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept() {
            Ok((stream, _)) => return stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn assert_options(socket: &Socket) {
    assert!(socket.tcp_nodelay().unwrap());
    assert!(socket.out_of_band_inline().unwrap());
    assert!(socket.keepalive().unwrap());
    assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
    assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
    assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_PROBES);
}

#[test]
fn a_listener_does_not_block_and_passes_on_its_options() {
    for ipv6 in [false, true] {
        let listener = listen(loopback(ipv6), 16).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_options(&Socket::from(accept(&listener)));
        drop(client);
    }
}

#[test]
fn both_families_may_listen_on_one_port() {
    let v6 = listen(loopback(true), 16).unwrap();
    let port = v6.local_addr().unwrap().port();
    assert!(listen((Ipv4Addr::UNSPECIFIED, port).into(), 16).is_ok());
}

#[test]
fn a_reset_on_close_is_seen_by_the_peer() {
    let listener = listen(loopback(false), 16).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let server = accept(&listener);
    set_reset_on_close(&server).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn what_a_listener_accepts_is_reset_on_close_until_it_may_end() {
    let listener = listen(loopback(false), 16).unwrap();
    set_reset_on_close(&listener).unwrap();
    let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut client = connect();
    drop(accept(&listener));
    assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut client = connect();
    let server = accept(&listener);
    set_end_on_close(&server).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn options_stick() {
    let socket = tcp_socket(false).unwrap();
    assert_options(&socket);
    assert!(take_error(&socket).unwrap().is_none());
    let flags = rustix::io::fcntl_getfd(socket.as_fd()).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn a_bound_address_leaves_the_port_to_connect() {
    for ipv6 in [false, true] {
        let socket = tcp_socket(ipv6).unwrap();
        bind_address(&socket, loopback(ipv6).ip()).unwrap();
        let bound = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!((bound.ip(), bound.port()), (loopback(ipv6).ip(), 0));
    }
}
