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

fn count(netns: &Netns, matches: impl FnMut(&Connection) -> bool) -> usize {
    Connections::list(netns, matches).unwrap().to_vec().len()
}

fn destroy(netns: &Netns, matches: impl FnMut(&Connection) -> bool) -> usize {
    Connections::list(netns, matches).unwrap().destroy().unwrap()
}

#[test]
fn only_what_matches_is_destroyed() {
    let (_namespace, netns) = lab("d-some");
    let (mut doomed, mut spared) = netns
        .run(|| (Pair::new("10.8.0.1:0", "10.8.0.1"), Pair::new("127.0.0.1:0", "127.0.0.1")))
        .unwrap();
    let doomed_port = doomed.client.peer_addr().unwrap().port();
    let to_doomed = |connection: &Connection| connection.remote.port() == doomed_port;
    assert_eq!(count(&netns, to_doomed), 1);
    assert_eq!(destroy(&netns, to_doomed), 1);
    assert_eq!(count(&netns, to_doomed), 0);
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
    count(&netns, |connection| {
        remotes.push(connection.remote.ip().to_string());
        false
    });
    remotes.sort();
    remotes.dedup();
    assert_eq!(remotes, ["10.8.0.1", "127.0.0.1", "::1"]);
    // The reset of one end may reach the other before its turn comes.
    assert!((3..=6).contains(&destroy(&netns, |_| true)));
    assert_eq!(count(&netns, |_| true), 0);
    assert!(pairs.into_iter().all(|mut pair| !pair.works()));
}

#[test]
fn other_namespaces_are_untouched() {
    let (_namespace, netns) = lab("d-mine");
    let (_other_namespace, other) = lab("d-other");
    let mut pair = other.run(|| Pair::new("127.0.0.1:0", "127.0.0.1")).unwrap();
    assert_eq!(destroy(&netns, |_| true), 0);
    assert!(pair.works());
}

#[test]
fn our_own_sockets_are_known_by_their_inodes() {
    let (_namespace, netns) = lab("d-own");
    let pair = netns.run(|| Pair::new("127.0.0.1:0", "127.0.0.1")).unwrap();
    let own = own_sockets().unwrap();
    assert_eq!(count(&netns, |connection| own.contains(&connection.inode)), 2);
    drop(pair);
}

#[test]
fn connections_that_were_not_accepted_have_a_cookie_and_no_inode() {
    let (_namespace, netns) = lab("d-backlog");
    let listen = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (listener, client)
    };
    let (listener, client) = netns.run(listen).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut waiting = Connections::list(&netns, |found| found.local.port() == port).unwrap();
    let [connection] = waiting.to_vec()[..] else { panic!("one is waiting") };
    assert_eq!(connection.inode, 0);
    waiting.retain(|found| found.cookie != connection.cookie);
    assert!(waiting.is_empty());
    listener.accept().unwrap();
    drop(client);
}
