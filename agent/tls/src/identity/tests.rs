//! Whole handshakes in memory: who gets through, what resumes, and what no longer does.

mod refusals;
mod resumption;

use std::{net::Ipv4Addr, sync::Arc};

use rustls::{HandshakeKind, NamedGroup, ProtocolVersion, SupportedCipherSuite};

use super::*;
use crate::{
    TestClock,
    testing::{Authority, Leaf, Link, WEB, test_clock},
};

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Workloads of one trust domain that share a clock, as if each were on a node of its own.
struct Mesh {
    root: Authority,
    clock: Arc<TestClock>,
}

impl Mesh {
    fn new() -> Self {
        Self { root: Authority::root("root"), clock: test_clock() }
    }

    fn trust(&self, generation: u64) -> Trust {
        Trust { bundle: Arc::new(self.root.bundle()), generation, clock: self.clock.clone() }
    }

    fn identity(&self, id: &str) -> Identity {
        self.identity_from(self.root.leaf(id), None)
    }

    fn identity_from(&self, leaf: Leaf, predecessor: Option<&Identity>) -> Identity {
        leaf.identity(self.trust(0), predecessor)
    }
}

impl Identity {
    /// The same identity, whose connections write no record longer than `length`.
    pub(crate) fn with_records_of(mut self, length: usize) -> Self {
        Arc::make_mut(&mut self.client).max_fragment_size = Some(length);
        Arc::make_mut(&mut self.server).max_fragment_size = Some(length);
        self
    }

    /// The same identity, whose clients offer nothing but `suite`.
    pub(crate) fn with_suite(self, suite: SupportedCipherSuite) -> Self {
        let provider =
            CryptoProvider { cipher_suites: vec![suite], ..CryptoProvider::clone(&provider()) };
        let config = client_config(Arc::new(provider), &self.key, &self.trust, &self.sessions);
        Self { client: Arc::new(config.unwrap()), ..self }
    }
}

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

/// Connects `client` to `server`, expecting whoever `server` is.
fn link(client: &Identity, server: &Identity) -> Link {
    let connection = client.client_connection(server.id(), HERE).unwrap();
    Link::new(connection, server.server_connection().unwrap())
}

/// Connects, exchanges a word each way and returns the kind of handshake, on which both ends must
/// agree.
fn connect(client: &Identity, server: &Identity) -> HandshakeKind {
    let mut link = link(client, server);
    link.talk().unwrap();
    let seen_by_client = client.peer(&link.client).unwrap();
    let seen_by_server = server.peer(&link.server).unwrap();
    assert_eq!((&seen_by_client.id, &seen_by_server.id), (server.id(), client.id()));
    assert_eq!(link.client.handshake_kind(), link.server.handshake_kind());
    link.client.handshake_kind().unwrap()
}

#[test]
fn both_ends_prove_who_they_are() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    let mut link = link(&cart, &web);
    assert_eq!(cart.peer(&link.client), Err(PeerError::Handshaking));
    link.talk().unwrap();
    let peer = web.peer(&link.server).unwrap();
    assert_eq!((peer.id.as_str(), peer.resumed), (CART, false));
    assert_eq!(&*peer.chain, cart.chain());
    assert_eq!(cart.peer(&link.client).unwrap().id.as_str(), WEB);
    for end in [&**link.client, &**link.server] {
        assert_eq!(end.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(end.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(end.alpn_protocol(), Some(ALPN));
        let group = end.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
        let suite = end.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
}

#[test]
fn the_first_message_names_nobody() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    let mut link = link(&cart, &web);
    link.client_turn(None).unwrap();
    let hello = std::mem::take(&mut link.to_server);
    for secret in [b"sluice\0".as_slice(), b".sluice", b"cluster.local", b"shop"] {
        assert!(!hello.windows(secret.len()).any(|window| window == secret));
    }
}

#[test]
fn a_chain_through_an_intermediate_is_sent_whole() {
    let mesh = Mesh::new();
    let leaf = mesh.root.intermediate("intermediate").leaf(CART);
    let cart = mesh.identity_from(leaf, None);
    assert_eq!(connect(&cart, &mesh.identity(WEB)), HandshakeKind::Full);
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    let mut link = link(&cart, &web);
    link.client_turn(None).unwrap();
    while link.client.is_handshaking() || link.server.is_handshaking() {
        let flight = std::mem::take(&mut link.to_server);
        for byte in flight {
            link.to_server.push(byte);
            link.server_turn(None).unwrap();
        }
        let flight = std::mem::take(&mut link.to_client);
        for byte in flight {
            link.to_client.push(byte);
            link.client_turn(None).unwrap();
        }
    }
    link.talk().unwrap();
    assert_eq!(web.peer(&link.server).unwrap().id.as_str(), CART);
}
