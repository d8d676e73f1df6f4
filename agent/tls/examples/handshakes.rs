//! Handshakes per second of one core, both ends in one thread and no sockets: Sluice's channels, full and
//! resumed, beside a bare rustls client and server with the same certificates, suites and key exchange.
//!
//! `cargo run --release -p sluice-tls --example handshakes [seconds per row]`
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a measuring program for developers")]

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use sluice_tls::{CertStore, Channel, Identity, Settings, SystemClock, TrustBundle, ca::LocalCa};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const NAME: &str = "web.shop";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let seconds = std::env::args().nth(1).map_or(2.0, |text| text.parse().unwrap());
    let span = Duration::from_secs_f64(seconds);
    let directory = std::env::temp_dir().join(format!("handshakes-{}", std::process::id()));
    let authority =
        LocalCa::embedded(&directory, &"cluster.local".parse().unwrap(), Arc::new(SystemClock))
            .unwrap();
    let bare = Bare::new();
    let bundle =
        TrustBundle::new("cluster.local".parse().unwrap(), authority.roots().to_vec()).unwrap();
    let store =
        CertStore::new(Settings::default(), Arc::new(authority), bundle, Arc::new(SystemClock));
    let [client, server] = [CLIENT, SERVER].map(|id| id.parse().unwrap());
    store.want(&client);
    store.want(&server);
    let client = store.wait(&client, Duration::from_secs(5)).await.unwrap();
    let server = store.wait(&server, Duration::from_secs(5)).await.unwrap();

    let mut place = 0;
    row("sluice, full", span, || {
        // A new address each time, so there is nothing to resume.
        place += 1;
        assert!(!sluice(&client, &server, Ipv4Addr::from_bits(place).into()));
    });
    let one = IpAddr::V4(Ipv4Addr::LOCALHOST);
    sluice(&client, &server, one);
    row("sluice, resumed", span, || assert!(sluice(&client, &server, one)));
    row("rustls, full", span, || bare.shake(&bare.client_without_tickets));
    bare.shake(&bare.client);
    row("rustls, resumed", span, || bare.shake(&bare.client));
    std::fs::remove_dir_all(directory).unwrap();
}

/// Measures by the CPU time of this thread, which other programs disturb less.
fn row(name: &str, span: Duration, mut handshake: impl FnMut()) {
    let (started, cpu, mut count) = (Instant::now(), cpu_time(), 0_u32);
    while started.elapsed() < span {
        handshake();
        count += 1;
    }
    let each = cpu_time().saturating_sub(cpu).as_secs_f64() / f64::from(count);
    println!("{name:<18} {:>7.0}/s  {:>6.1} us", each.recip(), each * 1e6);
}

fn cpu_time() -> Duration {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(statistics.split(' ').next().unwrap().parse().unwrap())
}

/// Makes one handshake and sends a byte each way. Returns whether a session was resumed.
fn sluice(client_identity: &Identity, server_identity: &Identity, place: IpAddr) -> bool {
    let mut client = Channel::connect(client_identity, server_identity.id(), place).unwrap();
    let mut server = Channel::accept(server_identity).unwrap();
    let (mut to_client, mut to_server, mut plaintext) = (Vec::new(), Vec::new(), Vec::new());
    let (mut resumed, mut introduced) = (None, false);
    while plaintext.len() < 2 {
        let progress = client.receive(&mut to_client, &mut plaintext, &mut to_server).unwrap();
        to_client.drain(..progress.taken);
        if progress.established && resumed.is_none() {
            resumed = Some(client.peer(client_identity).unwrap().resumed);
            client.send(b"?", &mut to_server).unwrap();
        }
        let progress = server.receive(&mut to_server, &mut plaintext, &mut to_client).unwrap();
        to_server.drain(..progress.taken);
        if progress.established && !introduced {
            server.peer(server_identity).unwrap();
            introduced = true;
            server.send(b"!", &mut to_client).unwrap();
        }
    }
    resumed.unwrap()
}

/// Plain rustls with P-256 certificates for a DNS name, and no SPIFFE.
struct Bare {
    client: Arc<ClientConfig>,
    client_without_tickets: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Bare {
    fn new() -> Self {
        // The same key exchange as ours, so that only what is around it is compared.
        let provider = Arc::new(CryptoProvider {
            kx_groups: vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        });
        let root_key = KeyPair::generate().unwrap();
        let mut root = CertificateParams::new(Vec::new()).unwrap();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = root.self_signed(&root_key).unwrap();
        let issuer = Issuer::new(root, root_key);
        let leaf = || {
            let key = KeyPair::generate().unwrap();
            let leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
            let leaf = leaf.signed_by(&key, &issuer).unwrap();
            let key = PrivatePkcs8KeyDer::from(key.serialize_der());
            (vec![leaf.der().clone()], PrivateKeyDer::from(key))
        };
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let (chain, key) = leaf();
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain, key)
            .unwrap();
        client.alpn_protocols = vec![sluice_tls::ALPN.to_vec()];
        let mut without = client.clone();
        without.resumption = Resumption::disabled();
        let (chain, key) = leaf();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        server.alpn_protocols = vec![sluice_tls::ALPN.to_vec()];
        server.ticketer = aws_lc_rs::Ticketer::new().unwrap();
        Self {
            client: Arc::new(client),
            client_without_tickets: Arc::new(without),
            server: Arc::new(server),
        }
    }

    fn shake(&self, config: &Arc<ClientConfig>) {
        let name = ServerName::try_from(NAME).unwrap();
        let mut client = ClientConnection::new(Arc::clone(config), name).unwrap();
        let mut server = ServerConnection::new(Arc::clone(&self.server)).unwrap();
        let mut wire = Vec::new();
        while client.wants_write() || server.wants_write() {
            client.write_tls(&mut wire).unwrap();
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                server.read_tls(&mut rest).unwrap();
                server.process_new_packets().unwrap();
            }
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            let mut rest = wire.as_slice();
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
            wire.clear();
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
    }
}
