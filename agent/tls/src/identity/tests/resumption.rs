//! Sessions: who may resume what, and for how long.

use std::{net::IpAddr, task::Poll, time::Duration};

use super::*;
use crate::TrustBundle;

#[test]
fn a_session_is_resumed_and_the_client_is_still_known() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    assert_eq!(connect(&cart, &web), HandshakeKind::Full);
    for _ in 0..5 {
        let mut link = link(&cart, &web);
        link.talk().unwrap();
        assert_eq!(link.server.handshake_kind(), Some(HandshakeKind::Resumed));
        let peer = web.peer(&link.server).unwrap();
        assert_eq!((peer.id.as_str(), peer.resumed), (CART, true));
        assert_eq!(&*peer.chain, cart.chain());
    }
}

#[test]
fn connections_at_once_each_resume_a_session_of_their_own() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    connect(&cart, &web);
    let mut links = [link(&cart, &web), link(&cart, &web)];
    for link in &mut links {
        link.talk().unwrap();
        assert_eq!(link.client.handshake_kind(), Some(HandshakeKind::Resumed));
    }
}

/// Runs `count` futures of `begin` at the same time in this task.
async fn together<T>(count: usize, begin: impl AsyncFn() -> T) -> Vec<T> {
    let mut running: Vec<_> = (0..count).map(|_| Box::pin(begin())).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|cx| {
        running.retain_mut(|future| match future.as_mut().poll(cx) {
            Poll::Ready(value) => {
                done.push(value);
                false
            }
            Poll::Pending => true,
        });
        if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done
}

/// All connections of the burst run in one task, so the order is always the same: each asks for leave to begin before
/// any handshake goes on.
#[tokio::test(start_paused = true)]
async fn a_burst_to_a_new_server_makes_its_acquaintance_once() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    let kinds = together(16, async || {
        cart.acquaintance(web.id(), HERE).await;
        let mut link = link(&cart, &web);
        tokio::time::sleep(Duration::from_millis(1)).await;
        link.talk().unwrap();
        link.client.handshake_kind().unwrap()
    })
    .await;
    let full = kinds.iter().filter(|kind| **kind == HandshakeKind::Full).count();
    assert_eq!((full, kinds.len()), (1, 16));
}

#[test]
fn one_full_handshake_brings_tickets_for_a_burst() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    assert_eq!(connect(&cart, &web), HandshakeKind::Full);
    // Each takes its ticket when it begins, and none has ended.
    let mut links: Vec<_> = (0..17).map(|_| link(&cart, &web)).collect();
    let kinds = links.iter_mut().map(|link| {
        link.talk().unwrap();
        link.client.handshake_kind().unwrap()
    });
    assert_eq!(kinds.filter(|kind| *kind == HandshakeKind::Resumed).count(), 16);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_long_for_the_tickets_of_another() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    let start = tokio::time::Instant::now();
    cart.acquaintance(web.id(), HERE).await;
    assert_eq!(start.elapsed(), Duration::ZERO, "the first begins at once");
    cart.acquaintance(mesh.identity(CART).id(), HERE).await;
    assert_eq!(start.elapsed(), Duration::ZERO, "another server is another matter");
    cart.acquaintance(web.id(), HERE).await;
    let waited = start.elapsed();
    assert!(waited > Duration::ZERO && waited < Duration::from_millis(50), "{waited:?}");
}

#[test]
fn a_session_is_bound_to_the_identity_that_was_expected() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    let admin = mesh.identity("spiffe://cluster.local/ns/kube-system/sa/admin");
    connect(&cart, &web);
    // The server of WEB answers where `admin` is expected: no ticket is offered to it.
    let connection = cart.client_connection(admin.id(), HERE).unwrap();
    let mut link = Link::new(connection, web.server_connection().unwrap());
    let (end, error) = link.talk().unwrap_err();
    assert_eq!(end, "client");
    assert!(error.to_string().contains("not the workload that was dialled"), "{error}");
}

#[test]
fn a_ticket_of_one_identity_is_worthless_at_another() {
    let mesh = Mesh::new();
    let cart = mesh.identity(CART);
    // Two servers of one identity, as on two nodes: each has ticket keys of its own.
    let (here, there) = (mesh.identity(WEB), mesh.identity(WEB));
    assert_eq!(connect(&cart, &here), HandshakeKind::Full);
    assert_eq!(connect(&cart, &there), HandshakeKind::Full);
}

#[test]
fn sessions_at_two_places_do_not_displace_each_other() {
    let mesh = Mesh::new();
    let cart = mesh.identity(CART);
    let servers = [mesh.identity(WEB), mesh.identity(WEB)];
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        for (host, web) in (1..).zip(&servers) {
            let place = IpAddr::from([10, 0, 0, host]);
            let connection = cart.client_connection(web.id(), place).unwrap();
            let mut link = Link::new(connection, web.server_connection().unwrap());
            link.talk().unwrap();
            assert_eq!(link.client.handshake_kind(), Some(kind));
        }
    }
}

#[test]
fn a_renewed_server_still_knows_its_sessions() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    connect(&cart, &web);
    let renewed = mesh.identity_from(mesh.root.leaf(WEB), Some(&web));
    assert_eq!(connect(&cart, &renewed), HandshakeKind::Resumed);
}

#[test]
fn a_renewed_client_proves_itself_anew() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    connect(&cart, &web);
    let renewed = mesh.identity_from(mesh.root.leaf(CART), Some(&cart));
    let mut link = link(&renewed, &web);
    link.talk().unwrap();
    assert_eq!(link.server.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(&*web.peer(&link.server).unwrap().chain, renewed.chain());
}

#[test]
fn a_change_of_roots_ends_every_session_at_either_end() {
    let mut mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    connect(&cart, &web);
    let other = Authority::root("other");
    let domain = mesh.root.bundle().local().clone();
    let both = TrustBundle::new(domain, [mesh.root.der(), other.der()]).unwrap();
    let both = Trust { bundle: Arc::new(both), ..mesh.trust(1) };
    let web_of_both = web.with_trust(both.clone()).unwrap();
    assert_eq!(connect(&cart, &web_of_both), HandshakeKind::Full);
    assert_eq!(connect(&cart, &web_of_both), HandshakeKind::Resumed);
    let cart_of_both = cart.with_trust(both).unwrap();
    assert_eq!(connect(&cart_of_both, &web_of_both), HandshakeKind::Full);
    // The old root is removed: sessions that it vouched for are not resumed, nor do new ones begin.
    mesh.root = other;
    let web = web_of_both.with_trust(mesh.trust(2)).unwrap();
    let mut link = link(&cart_of_both, &web);
    let (end, error) = link.talk().unwrap_err();
    assert_eq!(end, "server");
    assert!(error.to_string().contains("UnknownIssuer"), "{error}");
    assert_eq!(web.peer(&link.server), Err(PeerError::Handshaking));
    assert!(link.read_by_server.is_empty());
}

#[test]
fn a_session_ends_with_the_servers_certificate() {
    let mesh = Mesh::new();
    let cart = mesh.root.leaf_with(|params| {
        params.subject_alt_names = vec![crate::testing::uri(CART)];
        Authority::validity(params, 0, 20_000);
    });
    let cart = mesh.identity_from(cart, None);
    let web = mesh.identity(WEB);
    connect(&cart, &web);
    mesh.clock.advance(Duration::from_secs(3601));
    let renewed = mesh.root.leaf_with(|params| Authority::validity(params, 3000, 20_000));
    let web = mesh.identity_from(renewed, Some(&web));
    // The server would resume. The client must not: it could not tell that the server's old certificate has expired.
    assert_eq!(connect(&cart, &web), HandshakeKind::Full);
    assert_eq!(connect(&cart, &web), HandshakeKind::Resumed);
}

#[test]
fn a_client_that_resumes_past_its_own_certificate_is_found_out() {
    let mesh = Mesh::new();
    let web = mesh.root.leaf_with(|params| Authority::validity(params, 0, 20_000));
    let web = mesh.identity_from(web, None);
    // The client's clock stands still, so its agent believes that its certificate is valid.
    let slow = Mesh { root: Authority::root("unused"), clock: test_clock() };
    let trust = Trust { clock: slow.clock.clone(), ..mesh.trust(0) };
    let cart = mesh.root.leaf(CART).identity(trust, None);
    connect(&cart, &web);
    mesh.clock.advance(Duration::from_secs(3601));
    let mut link = link(&cart, &web);
    link.talk().unwrap();
    assert_eq!(link.server.handshake_kind(), Some(HandshakeKind::Resumed));
    let error = web.peer(&link.server).unwrap_err();
    assert!(error.to_string().contains("CertExpired"), "{error}");
}

#[test]
fn a_certificate_that_no_path_needs_may_expire() {
    let mesh = Mesh::new();
    let cross = Authority::root("old").cross_signed(&mesh.root, "root", 100);
    let with_cross = |id: &str| {
        let mut leaf = mesh.root.intermediate("intermediate").leaf_with(|params| {
            params.subject_alt_names = vec![crate::testing::uri(id)];
            Authority::validity(params, 0, 20_000);
        });
        leaf.chain.push(cross.clone());
        mesh.identity_from(leaf, None)
    };
    let (cart, web) = (with_cross(CART), with_cross(WEB));
    assert_eq!(connect(&cart, &web), HandshakeKind::Full);
    mesh.clock.advance(Duration::from_secs(101));
    let mut link = link(&cart, &web);
    link.talk().unwrap();
    assert_eq!(link.server.handshake_kind(), Some(HandshakeKind::Resumed));
    let peers = [cart.peer(&link.client).unwrap(), web.peer(&link.server).unwrap()];
    for peer in peers {
        assert_eq!(peer.valid, (crate::testing::at(0), crate::testing::at(20_000)));
        assert!(peer.reuse_until > crate::testing::at(5000));
    }
}

/// Connects, with `from`'s certificate, to the identity of `to` at one of many addresses.
fn connect_at(from: &Identity, to: &Identity, host: u16) -> HandshakeKind {
    let [high, low] = host.to_be_bytes();
    let place = IpAddr::from([10, 0, high, low]);
    let connection = from.client_connection(to.id(), place).unwrap();
    let mut link = Link::new(connection, to.server_connection().unwrap());
    link.talk().unwrap();
    link.client.handshake_kind().unwrap()
}

#[test]
fn sessions_are_bounded() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    let connect_at = |host| connect_at(&cart, &web, host);
    // Sixteen tickets each: eight places fill the store, and those that follow take of what all have.
    for host in 0..128 {
        assert_eq!(connect_at(host), HandshakeKind::Full);
    }
    for host in [0, 64, 127] {
        assert_eq!(connect_at(host), HandshakeKind::Resumed, "{host}");
    }
    // One place more displaces the one that was used least recently.
    assert_eq!(connect_at(128), HandshakeKind::Full);
    assert_eq!(connect_at(1), HandshakeKind::Full);
}

#[test]
fn many_connections_to_one_server_leave_another_its_tickets() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    assert_eq!(connect_at(&cart, &web, 1), HandshakeKind::Full);
    // Each takes one ticket and brings several.
    for _ in 0..100 {
        connect_at(&cart, &web, 2);
    }
    assert_eq!(connect_at(&cart, &web, 1), HandshakeKind::Resumed);
    assert_eq!(connect_at(&cart, &web, 2), HandshakeKind::Resumed);
}
