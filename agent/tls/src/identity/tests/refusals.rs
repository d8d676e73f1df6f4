//! Handshakes that must fail, and at which end.

use std::time::Duration;

use rustls::{
    ClientConfig,
    client::{UnbufferedClientConnection, danger::ServerCertVerifier},
    crypto::CryptoProvider,
};

use super::*;
use crate::session::Sessions;

/// The configuration of a client that is not ours: it trusts as we do, but has its own `provider`
/// and certificate, or none.
fn stranger(mesh: &Mesh, provider: CryptoProvider, key: Option<Leaf>) -> ClientConfig {
    let trust = mesh.trust(0);
    let sessions = Arc::new(Sessions::new(trust.clock.clone()));
    let verifier: Arc<dyn ServerCertVerifier> =
        Arc::new(ServerVerifier::new(trust.bundle.clone(), sessions));
    let time = Arc::new(RustlsTime(trust.clock));
    let builder = ClientConfig::builder_with_details(Arc::new(provider), time)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match key {
        None => builder.with_no_client_auth(),
        Some(leaf) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(leaf.certified())))
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config
}

fn link_of(config: ClientConfig, web: &Identity) -> Link {
    let name = expected_name(web.id(), HERE);
    let client = UnbufferedClientConnection::new(Arc::new(config), name).unwrap();
    Link::new(client, web.server_connection().unwrap())
}

/// Fails unless the server refuses the client before it reads a byte.
fn assert_server_refuses(mut link: Link, web: &Identity, reason: &str) {
    let (end, error) = link.talk().unwrap_err();
    assert_eq!(end, "server");
    assert!(error.to_string().contains(reason), "{error}");
    assert!(link.read_by_server.is_empty());
    assert_eq!(web.peer(&link.server), Err(PeerError::Handshaking));
    // The client is told: the next thing that the server sends is an alert.
    link.server_turn(None).unwrap_err();
    let error = link.client_turn(None).unwrap_err();
    assert!(matches!(error, Error::AlertReceived(_)), "{error}");
}

#[test]
fn a_server_that_is_somebody_else() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    let connection =
        cart.client_connection(&id("spiffe://cluster.local/ns/shop/sa/we"), HERE).unwrap();
    let mut link = Link::new(connection, web.server_connection().unwrap());
    let (end, error) = link.talk().unwrap_err();
    assert_eq!(end, "client");
    let text = format!("the server is {WEB}, which is not the workload that was dialled");
    assert_eq!(error.to_string(), text);
    assert!(link.read_by_server.is_empty());
}

#[test]
fn a_client_without_certificate() {
    let mesh = Mesh::new();
    let web = mesh.identity(WEB);
    let link = link_of(stranger(&mesh, (*provider()).clone(), None), &web);
    assert_server_refuses(link, &web, "no certificates");
}

#[test]
fn a_client_of_another_root() {
    let mesh = Mesh::new();
    let web = mesh.identity(WEB);
    let leaf = Authority::root("root").leaf(CART);
    let link = link_of(stranger(&mesh, (*provider()).clone(), Some(leaf)), &web);
    assert_server_refuses(link, &web, "InvalidSignature");
}

#[test]
fn a_client_that_has_somebody_elses_certificate_but_not_its_key() {
    let mesh = Mesh::new();
    let web = mesh.identity(WEB);
    let stolen = Leaf { key: mesh.root.leaf(CART).key, ..mesh.root.leaf(CART) };
    let link = link_of(stranger(&mesh, (*provider()).clone(), Some(stolen)), &web);
    assert_server_refuses(link, &web, "BadSignature");
}

#[test]
fn a_client_that_presents_more_than_any_path_needs() {
    let mesh = Mesh::new();
    let web = mesh.identity(WEB);
    let mut leaf = mesh.root.leaf(CART);
    leaf.chain.resize(17, mesh.root.der());
    let link = link_of(stranger(&mesh, (*provider()).clone(), Some(leaf)), &web);
    assert_server_refuses(link, &web, "17 certificates of ");
}

#[test]
fn a_client_whose_certificate_is_a_ca() {
    let mesh = Mesh::new();
    let web = mesh.identity(WEB);
    let leaf = mesh.root.leaf_with(|params| {
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let link = link_of(stranger(&mesh, (*provider()).clone(), Some(leaf)), &web);
    assert_server_refuses(link, &web, "is a CA certificate");
}

#[test]
fn a_certificate_that_has_expired_since() {
    let mesh = Mesh::new();
    let web = mesh.root.leaf_with(|params| Authority::validity(params, 0, 20_000));
    let web = mesh.identity_from(web, None);
    let leaf = mesh.root.leaf(CART);
    mesh.clock.advance(Duration::from_secs(3601));
    let link = link_of(stranger(&mesh, (*provider()).clone(), Some(leaf)), &web);
    assert_server_refuses(link, &web, "CertExpired");
}

#[test]
fn cryptography_that_is_not_ours() {
    use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
    let mesh = Mesh::new();
    let web = mesh.identity(WEB);
    let chacha = CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_CHACHA20_POLY1305_SHA256],
        ..(*provider()).clone()
    };
    let leaf = || Some(mesh.root.leaf(CART));
    assert_server_refuses(link_of(stranger(&mesh, chacha, leaf()), &web), &web, "NoCipherSuites");
    let kem_alone =
        CryptoProvider { kx_groups: vec![kx_group::MLKEM1024], ..(*provider()).clone() };
    let link = link_of(stranger(&mesh, kem_alone, leaf()), &web);
    assert_server_refuses(link, &web, "NoKxGroups");
}

#[test]
fn tls_12_is_refused() {
    let mesh = Mesh::new();
    let (cart, web) = (mesh.identity(CART), mesh.identity(WEB));
    let mut link = link(&cart, &web);
    link.client_turn(None).unwrap();
    // In supported_versions (43), the only version listed, 3.4, becomes 3.3.
    let versions = [0, 43, 0, 3, 2, 3, 4];
    let at = link.to_server.windows(7).position(|window| window == versions).unwrap();
    link.to_server[at + 6] = 3;
    let error = link.server_turn(None).unwrap_err();
    assert!(matches!(error, Error::PeerIncompatible(_)), "{error}");
}

#[test]
fn another_protocol_inside() {
    let mesh = Mesh::new();
    let web = mesh.identity(WEB);
    let mut config = stranger(&mesh, (*provider()).clone(), Some(mesh.root.leaf(CART)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    assert_server_refuses(link_of(config, &web), &web, "protocol");
    // rustls accepts a client that names no protocol, so `peer` must refuse it.
    let mut config = stranger(&mesh, (*provider()).clone(), Some(mesh.root.leaf(CART)));
    config.alpn_protocols.clear();
    let mut link = link_of(config, &web);
    link.talk().unwrap();
    assert_eq!(web.peer(&link.server), Err(PeerError::Protocol));
}

#[test]
fn early_data_is_never_accepted() {
    let mesh = Mesh::new();
    let web = mesh.identity(WEB);
    let mut config = stranger(&mesh, (*provider()).clone(), Some(mesh.root.leaf(CART)));
    config.enable_early_data = true;
    let config = Arc::new(config);
    for kind in [HandshakeKind::Full, HandshakeKind::Full] {
        let name = expected_name(web.id(), HERE);
        let client = UnbufferedClientConnection::new(config.clone(), name).unwrap();
        let mut link = Link::new(client, web.server_connection().unwrap());
        link.client_turn(None).unwrap();
        // The extension early_data (42), which is empty.
        assert!(!link.to_server.windows(4).any(|window| window == [0, 42, 0, 0]), "{kind:?}");
        link.talk().unwrap();
    }
}

#[test]
fn a_certificate_outside_its_validity_is_never_offered() {
    let mesh = Mesh::new();
    let cart = mesh.identity(CART);
    for seconds in [-61_i64, 3601] {
        mesh.clock.set(crate::testing::at(seconds));
        assert!(!cart.is_valid());
        assert!(cart.client_connection(&id(WEB), HERE).is_err());
        assert!(cart.server_connection().is_err());
    }
    for seconds in [-60, 3600] {
        mesh.clock.set(crate::testing::at(seconds));
        assert!(cart.client_connection(&id(WEB), HERE).is_ok());
    }
}
