//! Finding and ending connections of a real namespace.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::lab::Namespace;

struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new(listen: &str, host: &str) -> Self {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect((host, listener.local_addr().unwrap().port())).unwrap();
        Self { client, server: listener.accept().unwrap().0 }
    }

    fn works(&mut self) -> bool {
        self.client.write_all(b"x").is_ok() && self.server.read_exact(&mut [0]).is_ok()
    }
}

fn lab(name: &str) -> (Namespace, Netns) {
    let namespace = Namespace::new(name);
    namespace.ip("link set lo up");
    namespace.ip("address add 10.8.0.1/32 dev lo");
    let netns = namespace.open();
    (namespace, netns)
}

#[test]
fn only_what_matches_is_destroyed() {
    let (_namespace, netns) = lab("d-some");
    let (mut doomed, mut spared) = netns
        .run(|| (Pair::new("10.8.0.1:0", "10.8.0.1"), Pair::new("127.0.0.1:0", "127.0.0.1")))
        .unwrap();
    let doomed_port = doomed.client.peer_addr().unwrap().port();
    let to_doomed = |connection: &Connection| connection.remote.port() == doomed_port;
    assert_eq!(count_tcp(&netns, to_doomed).unwrap(), 1);
    assert_eq!(destroy_tcp(&netns, to_doomed).unwrap(), 1);
    assert_eq!(count_tcp(&netns, to_doomed).unwrap(), 0);
    assert!(!doomed.works());
    assert!(spared.works());
}

#[test]
fn both_families_and_mapped_addresses_are_found() {
    let (_namespace, netns) = lab("d-families");
    let pairs = netns
        .run(|| {
            [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "::ffff:10.8.0.1")]
                .map(|(listen, host)| Pair::new(listen, host))
        })
        .unwrap();
    let mut remotes = Vec::new();
    count_tcp(&netns, |connection| {
        remotes.push(connection.remote.ip().to_string());
        false
    })
    .unwrap();
    remotes.sort();
    remotes.dedup();
    assert_eq!(remotes, ["10.8.0.1", "127.0.0.1", "::1"]);
    // The reset of one end may reach the other before its turn comes.
    assert!((3..=6).contains(&destroy_tcp(&netns, |_| true).unwrap()));
    assert_eq!(count_tcp(&netns, |_| true).unwrap(), 0);
    assert!(pairs.into_iter().all(|mut pair| !pair.works()));
}

#[test]
fn other_namespaces_are_untouched() {
    let (_namespace, netns) = lab("d-mine");
    let (_other_namespace, other) = lab("d-other");
    let mut pair = other.run(|| Pair::new("127.0.0.1:0", "127.0.0.1")).unwrap();
    assert_eq!(destroy_tcp(&netns, |_| true).unwrap(), 0);
    assert!(pair.works());
}

#[test]
fn our_own_sockets_are_known_by_their_inodes() {
    let (_namespace, netns) = lab("d-own");
    let pair = netns.run(|| Pair::new("127.0.0.1:0", "127.0.0.1")).unwrap();
    let own = own_sockets().unwrap();
    assert_eq!(count_tcp(&netns, |connection| own.contains(&connection.inode)).unwrap(), 2);
    drop(pair);
}
