//! Two channels joined in memory: the caller moves bytes, nothing else.

use std::sync::Arc;

use super::*;
use crate::{
    TestClock,
    identity::Trust,
    testing::{Authority, Leaf, WEB, test_clock},
};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// One end with what it has read and what it has to say.
pub(super) struct Side {
    pub(super) channel: Channel,
    identity: Identity,
    pub(super) plaintext: Vec<u8>,
    pub(super) outgoing: Vec<u8>,
    pub(super) progress: Progress,
}

impl Side {
    fn new(channel: Channel, identity: Identity) -> Self {
        let progress = Progress { taken: 0, established: false, closed: false };
        Self { channel, identity, plaintext: Vec::new(), outgoing: Vec::new(), progress }
    }

    /// Processes and removes every whole record of `wire`.
    pub(super) fn receive(&mut self, wire: &mut Vec<u8>) -> Result<(), TlsError> {
        let progress = self.channel.receive(wire, &mut self.plaintext, &mut self.outgoing)?;
        wire.drain(..progress.taken);
        self.progress = progress;
        Ok(())
    }
}

fn identity(leaf: Leaf, root: &Authority, clock: &Arc<TestClock>) -> Identity {
    let trust = Trust { bundle: Arc::new(root.bundle()), generation: 0, clock: clock.clone() };
    leaf.identity(trust, None)
}

/// A client that expects `expected` and a server of [`WEB`], before the first byte.
fn sides(expected: &str) -> (Side, Side) {
    sides_of(expected, |identity| identity)
}

/// Does what [`sides`] does, with the client's identity changed by `change`.
fn sides_of(expected: &str, change: impl FnOnce(Identity) -> Identity) -> (Side, Side) {
    let (root, clock) = (Authority::root("root"), test_clock());
    let [cart, web] = [CART, WEB].map(|id| identity(root.leaf(id), &root, &clock));
    let cart = change(cart);
    let client = Channel::connect(&cart, &expected.parse().unwrap(), HERE).unwrap();
    let server = Channel::accept(&web).unwrap();
    (Side::new(client, cart), Side::new(server, web))
}

/// Returns both ends after a handshake and some words each way. Those that are `introduced` have let go of rustls.
pub(super) fn joined(
    introduced: (bool, bool),
    change: impl FnOnce(Identity) -> Identity,
) -> (Side, Side) {
    let (mut client, mut server) = sides_of(WEB, change);
    settle(&mut client, &mut server).unwrap();
    for (introduced, side) in [(introduced.0, &mut client), (introduced.1, &mut server)] {
        if introduced {
            side.channel.peer(&side.identity).unwrap();
        }
    }
    for _ in 0..2 {
        say(&mut client, &mut server, b"ping");
        say(&mut server, &mut client, b"pong");
    }
    for (introduced, side) in [(introduced.0, &client), (introduced.1, &server)] {
        assert_eq!(matches!(side.channel.end, End::Settled(_)), introduced);
    }
    (client, server)
}

/// Sends `what` from `from` to `to`.
pub(super) fn say(from: &mut Side, to: &mut Side, what: &[u8]) {
    from.channel.send(what, &mut from.outgoing).unwrap();
    let mut wire = std::mem::take(&mut from.outgoing);
    to.receive(&mut wire).unwrap();
    assert!(wire.is_empty(), "{} bytes are left", wire.len());
    assert!(std::mem::take(&mut to.plaintext) == what, "of {} bytes", what.len());
}

/// Moves bytes until neither end has anything left to send.
fn settle(client: &mut Side, server: &mut Side) -> Result<(), TlsError> {
    let mut to_client = Vec::new();
    loop {
        client.receive(&mut to_client)?;
        let mut to_server = std::mem::take(&mut client.outgoing);
        if to_server.is_empty() && to_client.is_empty() && client.progress.established {
            return Ok(());
        }
        server.receive(&mut to_server)?;
        to_client.append(&mut server.outgoing);
    }
}

#[test]
fn both_ends_of_one_connection_share_what_no_other_has() {
    let mut seen = std::collections::HashSet::new();
    for _ in 0..3 {
        let (mut client, mut server) = sides(WEB);
        let mut wire = Vec::new();
        client.receive(&mut wire).unwrap();
        assert_eq!(client.channel.take_binding(), None);
        server.receive(&mut client.outgoing).unwrap();
        let early = server.channel.take_binding();
        assert!(early.is_some(), "the server must know it before its flight leaves");
        client.receive(&mut server.outgoing).unwrap();
        assert!(client.progress.established);
        assert_eq!(client.channel.take_binding(), early);
        assert!(seen.insert(early), "two connections with one binding");
    }
}

#[test]
fn a_stream_of_any_length_arrives_as_it_was_sent() {
    let (mut client, mut server) = sides(WEB);
    settle(&mut client, &mut server).unwrap();
    assert!(client.progress.established && server.progress.established);
    assert_eq!(server.channel.peer(&server.identity).unwrap().id.as_str(), CART);
    assert_eq!(client.channel.peer(&client.identity).unwrap().id.as_str(), WEB);
    for length in [0, 1, 0x3fff, 0x4000, 0x4001, 0x8000, 100_000, 1_000_000] {
        let sent: Vec<u8> = (0_u8..=250).cycle().take(length).collect();
        client.channel.send(&sent, &mut client.outgoing).unwrap();
        let mut wire = std::mem::take(&mut client.outgoing);
        server.receive(&mut wire).unwrap();
        assert!(wire.is_empty());
        assert_eq!(std::mem::take(&mut server.plaintext), sent, "{length} bytes");
    }
}

#[test]
fn who_the_peer_is_can_be_asked_once() {
    let (mut client, mut server) = joined((true, true), |identity| identity);
    for Side { channel, identity, .. } in [&mut client, &mut server] {
        assert_eq!(channel.peer(identity), Err(PeerError::Forgotten));
    }
    assert!(client.channel.is_client() && !server.channel.is_client());
}

#[test]
fn a_client_keeps_its_tickets_before_it_lets_go() {
    let (mut client, server) = joined((true, true), |identity| identity);
    let again = client.identity.client_connection(server.identity.id(), HERE).unwrap();
    client.channel = Channel::over(End::Client(Box::new(again)));
    let mut far = Side::new(Channel::accept(&server.identity).unwrap(), server.identity);
    settle(&mut client, &mut far).unwrap();
    assert!(client.channel.peer(&client.identity).unwrap().resumed);
}

#[test]
fn an_incomplete_record_is_left_for_the_next_time() {
    let (mut client, mut server) = sides(WEB);
    settle(&mut client, &mut server).unwrap();
    client.channel.send(b"one", &mut client.outgoing).unwrap();
    let first = client.outgoing.len();
    client.channel.send(b"two", &mut client.outgoing).unwrap();
    let mut wire = client.outgoing.clone();
    let rest = wire.split_off(first + 3);
    server.receive(&mut wire).unwrap();
    assert_eq!((server.plaintext.as_slice(), wire.len()), (b"one".as_slice(), 3));
    wire.extend(rest);
    server.receive(&mut wire).unwrap();
    assert_eq!((server.plaintext.as_slice(), wire.len()), (b"onetwo".as_slice(), 0));
}

#[test]
fn an_end_that_closes_can_still_be_talked_to() {
    let (mut client, mut server) = sides(WEB);
    settle(&mut client, &mut server).unwrap();
    client.channel.send(b"last", &mut client.outgoing).unwrap();
    client.channel.close(&mut client.outgoing).unwrap();
    server.receive(&mut std::mem::take(&mut client.outgoing)).unwrap();
    assert_eq!((server.plaintext.as_slice(), server.progress.closed), (b"last".as_slice(), true));
    server.channel.send(b"answer", &mut server.outgoing).unwrap();
    server.channel.close(&mut server.outgoing).unwrap();
    client.receive(&mut std::mem::take(&mut server.outgoing)).unwrap();
    assert_eq!((client.plaintext.as_slice(), client.progress.closed), (b"answer".as_slice(), true));
}

#[test]
fn nothing_is_sent_before_the_handshake_is_over() {
    let (mut client, mut server) = sides(WEB);
    client.receive(&mut Vec::new()).unwrap();
    let hello = client.outgoing.len();
    assert!(client.channel.send(b"secret", &mut client.outgoing).is_err());
    assert!(server.channel.send(b"secret", &mut server.outgoing).is_err());
    assert!(server.channel.close(&mut server.outgoing).is_err());
    assert_eq!((client.outgoing.len(), server.outgoing.len()), (hello, 0));
}

#[test]
fn a_refusal_is_told_to_the_peer() {
    let (mut client, mut server) = sides("spiffe://cluster.local/ns/shop/sa/other");
    let error = settle(&mut client, &mut server).unwrap_err();
    assert!(error.to_string().contains("not the workload that was dialled"), "{error}");
    assert!(error.refusal().is_some());
    let mut alert = std::mem::take(&mut client.outgoing);
    assert!(!alert.is_empty());
    let error = server.receive(&mut alert).unwrap_err();
    assert!(error.to_string().contains("alert"), "{error}");
    for side in [&mut client, &mut server] {
        assert!(side.channel.send(b"secret", &mut side.outgoing).is_err());
        assert!(side.channel.close(&mut side.outgoing).is_err());
        assert!(side.receive(&mut Vec::new()).is_err());
    }
    assert_eq!(client.outgoing.len(), 0);
}

#[test]
fn messages_in_small_fragments_disturb_nobody() {
    let (root, clock) = (Authority::root("root"), test_clock());
    let [cart, web] = [CART, WEB].map(|id| identity(root.leaf(id), &root, &clock));
    let (cart, web) = (cart.with_records_of(40), web.with_records_of(40));
    let client = Channel::connect(&cart, &WEB.parse().unwrap(), HERE).unwrap();
    let server = Channel::accept(&web).unwrap();
    let (mut client, mut server) = (Side::new(client, cart), Side::new(server, web));
    client.receive(&mut Vec::new()).unwrap();
    trickle(&mut client, &mut server);
    trickle(&mut server, &mut client);
    trickle(&mut client, &mut server);
    // The client speaks between the fragments of the tickets.
    let said = trickle(&mut server, &mut client);
    assert!(said > 1000, "said something {said} times");
    server.receive(&mut std::mem::take(&mut client.outgoing)).unwrap();
    assert_eq!(server.plaintext.len(), said);
}

/// Passes what `from` has to send to `to` byte by byte. After each byte `to` says something, once it may. Returns how
/// often it did.
fn trickle(from: &mut Side, to: &mut Side) -> usize {
    let mut wire = Vec::new();
    let mut said = 0;
    for byte in std::mem::take(&mut from.outgoing) {
        wire.push(byte);
        to.receive(&mut wire).unwrap();
        if to.progress.established && from.progress.established {
            to.channel.send(b"!", &mut to.outgoing).unwrap();
            said += 1;
        }
    }
    said
}

#[test]
fn a_peer_that_stops_in_the_middle_of_a_message_can_be_left() {
    let (mut client, mut server) = sides(WEB);
    client.receive(&mut Vec::new()).unwrap();
    // The client's first message is split into two records, and only the first of them comes.
    let hello = client.outgoing.split_off(5);
    let mut wire = vec![22, 3, 1, 0, 100];
    wire.extend(&hello[..100]);
    server.receive(&mut wire).unwrap();
    assert!(server.channel.send(b"secret", &mut server.outgoing).is_err());
    assert!(server.channel.close(&mut server.outgoing).is_err());
    wire.extend([22, 3, 1]);
    wire.extend(u16::try_from(hello.len() - 100).unwrap().to_be_bytes());
    wire.extend(&hello[100..]);
    server.receive(&mut wire).unwrap();
    assert!(wire.is_empty() && !server.outgoing.is_empty());
}

#[test]
fn a_message_in_very_small_pieces_is_refused() {
    let (_, mut server) = sides(WEB);
    let mut wire = vec![22, 3, 1, 0, 4, 1, 0, 0xea, 0x60];
    wire.extend([22, 3, 1, 0, 1, 0].repeat(30_000));
    let error = server.receive(&mut wire).unwrap_err();
    assert!(error.to_string().contains("too small pieces"), "{error}");
    assert!(server.receive(&mut Vec::new()).is_err());
}

#[test]
fn what_is_not_tls_is_refused() {
    for noise in
        [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &[0; 64], &[0xff; 64], &[22, 3, 3, 0xff, 0xff]]
    {
        let (_, mut server) = sides(WEB);
        server.receive(&mut noise.to_vec()).unwrap_err();
        assert!(server.plaintext.is_empty());
    }
}

#[test]
fn a_record_that_was_altered_under_way_is_refused() {
    let (mut client, mut server) = sides(WEB);
    settle(&mut client, &mut server).unwrap();
    client.channel.send(b"pay 1", &mut client.outgoing).unwrap();
    *client.outgoing.last_mut().unwrap() ^= 1;
    server.receive(&mut client.outgoing).unwrap_err();
    assert!(server.plaintext.is_empty());
}
