//! The server itself: its certificate, its authority, its bounds.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

mod support;

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use sluice_controller::{CaFiles, Limits, Rate, Standing};
use sluice_grpc::istio_ca::{
    IstioCertificateRequest, impersonating,
    istio_certificate_service_client::IstioCertificateServiceClient,
};
use sluice_tls::{Clock, SystemClock, TestClock, UnixTime, ca::NewRoot};
use support::{
    Ask, CART, Client, Controller, ONE, Setup, TWO, WEB, eventually, parts_of, verified,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tonic::{
    Code,
    transport::{Certificate, Channel, ClientTlsConfig},
};

#[tokio::test]
async fn replicas_that_start_at_once_are_one_authority() {
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("ca");
    let start = || async {
        let material = Some(Arc::new(CaFiles::embedded(&shared)) as _);
        Setup { material, ..Setup::default() }.start().await
    };
    let (first, second, third) = tokio::join!(start(), start(), start());
    let root_file = shared.join("ca.crt");
    eventually("a root", async || root_file.exists()).await;
    let root = fs::read_to_string(root_file).unwrap();
    let mut roots = Vec::new();
    for controller in [&first, &second, &third] {
        let client = controller.client_trusting(&root, "ca.test").await.unwrap();
        let chain = client.ask(&Ask::new(ONE, WEB)).await.unwrap();
        verified(&chain);
        roots.push(parts_of(&chain).1);
    }
    assert!(roots.windows(2).all(|pair| pair[0] == pair[1]));
}

#[tokio::test]
async fn the_server_is_known_by_its_names_and_root_only() {
    let controller = Setup::default().start().await;
    controller.client().await.ask(&Ask::new(ONE, WEB)).await.unwrap();
    let pem = fs::read_to_string(controller.path("ca/ca.crt")).unwrap();
    assert!(controller.client_trusting(&pem, "127.0.0.1").await.is_ok());
    assert!(controller.client_trusting(&pem, "other.test").await.is_err());
    let foreign = NewRoot::generate(&"cluster.local".parse().unwrap(), &SystemClock).unwrap();
    assert!(controller.client_trusting(&foreign.certificate, "ca.test").await.is_err());
}

#[tokio::test]
async fn the_servers_own_certificate_is_renewed_before_it_expires() {
    // The client's clock is the machine's, so the controller begins in the past and arrives there.
    let now = SystemClock.now();
    let earlier = UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs() - 50 * 60));
    let clock = TestClock::at(earlier);
    let ttl = Duration::from_mins(40);
    let setup = Setup { ttl, clock: clock.clone(), ..Setup::default() };
    let controller = setup.start().await;
    let root_file = controller.path("ca/ca.crt");
    eventually("a root", async || root_file.exists()).await;
    let root = fs::read_to_string(root_file).unwrap();
    assert!(controller.client_trusting(&root, "ca.test").await.is_err(), "it has expired");
    clock.set(now);
    eventually("a new one", async || controller.client_trusting(&root, "ca.test").await.is_ok())
        .await;
}

#[tokio::test]
async fn an_expired_authority_issues_nothing() {
    let clock = TestClock::started_now();
    let setup = Setup { clock: clock.clone(), ..Setup::default() };
    let controller = setup.start().await;
    let client = controller.client().await;
    client.ask(&Ask::new(ONE, WEB)).await.unwrap();
    clock.advance(Duration::from_hours(24 * 365 * 11));
    let refusal = client.refusal(&Ask::new(ONE, WEB)).await;
    assert_eq!(refusal, (Code::Unavailable, "authority-valid".to_owned()));
}

#[tokio::test]
async fn who_is_silent_is_put_off() {
    let limits = Limits { handshake: Duration::from_millis(300), ..Limits::default() };
    let controller = Setup { limits, ..Setup::default() }.start().await;
    let mut silent = TcpStream::connect(controller.address).await.unwrap();
    let started = Instant::now();
    let read = tokio::time::timeout(Duration::from_secs(5), silent.read(&mut [0; 16])).await;
    assert!(matches!(read, Ok(Ok(0) | Err(_))), "closed");
    assert!(started.elapsed() >= Duration::from_millis(250));
}

#[tokio::test]
async fn connections_from_one_address_are_bounded_and_their_places_come_back() {
    let limits = Limits { connections_per_address: 2, ..Limits::default() };
    let controller = Setup { limits, ..Setup::default() }.start().await;
    let (first, second) = (controller.client().await, controller.client().await);
    first.ask(&Ask::new(ONE, WEB)).await.unwrap();
    second.ask(&Ask::new(TWO, CART)).await.unwrap();
    let pem = fs::read_to_string(controller.path("ca/ca.crt")).unwrap();
    assert!(controller.client_trusting(&pem, "ca.test").await.is_err());
    first.ask(&Ask::new(ONE, WEB)).await.unwrap();
    drop(first);
    eventually("a place", async || controller.client_trusting(&pem, "ca.test").await.is_ok()).await;
    second.ask(&Ask::new(TWO, CART)).await.unwrap();
}

/// Reads until the server has closed the connection.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = async { while stream.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {} };
    tokio::time::timeout(Duration::from_secs(5), read).await.is_ok()
}

#[tokio::test]
async fn who_proves_nothing_keeps_no_agent_out() {
    let limits = Limits { unproved: 2, connections: 2, ..Limits::default() };
    let controller = Setup { limits, ..Setup::default() }.start().await;
    let known = controller.client().await;
    known.ask(&Ask::new(ONE, WEB)).await.unwrap();
    let mut silent = TcpStream::connect(controller.address).await.unwrap();
    // All places are taken, by one that has proved itself and one that has not.
    let new = controller.client().await;
    assert!(is_closed(&mut silent).await);
    new.ask(&Ask::new(TWO, CART)).await.unwrap();
    let mut late = TcpStream::connect(controller.address).await.unwrap();
    assert!(is_closed(&mut late).await, "nobody makes room for it");
    known.ask(&Ask::new(ONE, WEB)).await.unwrap();
}

/// A client with one connection, and what ends when the server has closed that.
async fn watched(controller: &Controller) -> (Client, JoinHandle<()>) {
    let way = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = way.local_addr().unwrap();
    let server = TcpStream::connect(controller.address).await.unwrap();
    let until_closed = tokio::spawn(async move {
        let (mut from_server, mut to_server) = server.into_split();
        let (mut from_client, mut to_client) = way.accept().await.unwrap().0.into_split();
        tokio::select! {
            _ = tokio::io::copy(&mut from_server, &mut to_client) => {}
            _ = tokio::io::copy(&mut from_client, &mut to_server) => panic!("the client has gone"),
        }
    });
    let pem = fs::read_to_string(controller.path("ca/ca.crt")).unwrap();
    let client = Controller::client_at(address, &pem, "ca.test").await.unwrap();
    (client, until_closed)
}

#[tokio::test]
async fn a_connection_without_a_good_token_ends_soon_and_one_with_it_does_not() {
    let limits = Limits { proof: Duration::from_secs(1), ..Limits::default() };
    let controller = Setup { limits, ..Setup::default() }.start().await;
    drop(controller.client().await);
    let (known, of_known) = watched(&controller).await;
    known.ask(&Ask::new(ONE, WEB)).await.unwrap();
    let (unknown, of_unknown) = watched(&controller).await;
    let forged = Ask::new("forged-0123456789abcdef0123456789abcdef", WEB);
    assert_eq!(unknown.refusal(&forged).await.1, "caller-token");
    tokio::time::timeout(Duration::from_secs(10), of_unknown).await.unwrap().unwrap();
    known.ask(&Ask::new(ONE, WEB)).await.unwrap();
    assert!(!of_known.is_finished());
}

#[tokio::test]
async fn a_request_without_measure_is_not_read() {
    let controller = Setup::default().start().await;
    let client = controller.client().await;
    let request = IstioCertificateRequest {
        csr: "x".repeat(10_000),
        validity_duration: 0,
        metadata: Some(impersonating(WEB)),
    };
    let status = client.send(request, Some(&format!("Bearer {ONE}"))).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    client.ask(&Ask::new(ONE, WEB)).await.unwrap();
}

#[tokio::test]
async fn a_flood_of_forged_tokens_is_judged_a_few_at_a_time_and_keeps_no_agent_out() {
    let strangers = Rate { per_second: 1, burst: 20 };
    let limits = Limits { strangers, ..Limits::default() };
    let standing = Arc::new(Standing::default());
    let setup = Setup { limits, standing: Arc::clone(&standing), ..Setup::default() };
    let controller = setup.start().await;
    let client = controller.client().await;
    client.ask(&Ask::new(ONE, WEB)).await.unwrap();
    let start = Instant::now();
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..400 {
        let client = client.clone();
        flood.spawn(async move {
            client.refusal(&Ask::new(&format!("forged-{number}-{}", "x".repeat(32)), WEB)).await
        });
    }
    let refusals = flood.join_all().await;
    let count = |rule: &str| refusals.iter().filter(|(_, broken)| broken == rule).count();
    // An agent that proved itself before is served from the same address, and so is a new one from another.
    client.ask(&Ask::new(ONE, WEB)).await.unwrap();
    let allowed = 20 + usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
    assert!((20..=allowed).contains(&count("caller-token")), "{}", count("caller-token"));
    assert_eq!(count("caller-token") + count("address-rate"), 400);
    assert!(refusals.contains(&(Code::ResourceExhausted, "address-rate".to_owned())));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(fs::read(controller.path("ca/ca.crt")).unwrap()))
        .domain_name("ca.test");
    let from = Some([127, 0, 0, 2].into());
    let endpoint = Channel::from_shared(format!("https://{}", controller.address)).unwrap();
    let channel = endpoint.local_address(from).tls_config(tls).unwrap().connect().await.unwrap();
    let elsewhere = Client(IstioCertificateServiceClient::new(channel));
    elsewhere.ask(&Ask::new(TWO, CART)).await.unwrap();
    let refused = standing.refused();
    assert_eq!(standing.issued(), 3);
    assert_eq!(refused.values().sum::<u64>(), 400);
    assert_eq!(refused.keys().copied().collect::<Vec<_>>(), ["address-rate", "caller-token"]);
    assert!(standing.authority_ends() > standing.server_ends());
}
