//! How the CA is reached: whom the client believes to be the CA, and what it does when the wire fails.

use std::time::Instant;

use sluice_tls::{Clock as _, TestClock, UnixTime};

use super::*;

fn id() -> sluice_spiffe::SpiffeId {
    WEB.parse().unwrap()
}

async fn failure(client: &IstioCa) -> String {
    let error = client.issue(request(WEB)).await.unwrap_err();
    assert!(matches!(error, IssueError::Unreachable { .. }), "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_server_of_another_name_is_not_the_ca() {
    let bench = Bench::of(&["istiod.istio-system.svc"]).await;
    bench.sign(HOUR);
    let words = failure(&bench.client()).await;
    assert!(words.contains("localhost") && words.contains("istiod.istio-system.svc"), "{words}");
    assert_eq!(bench.server.seen(), [], "a token was shown to a stranger");
    let name = Some("istiod.istio-system.svc".to_owned());
    let settings = IstioCaSettings { server_name: name, ..bench.settings() };
    IstioCa::new(settings, Arc::new(SystemClock)).unwrap().issue(request(WEB)).await.unwrap();
}

#[tokio::test]
async fn a_server_of_another_root_or_out_of_date_is_not_the_ca() {
    let bench = Bench::new().await;
    bench.sign(HOUR);
    let later = SystemClock.now().as_secs() + 48 * 3600;
    let clock = TestClock::at(UnixTime::since_unix_epoch(Duration::from_secs(later)));
    let client = IstioCa::new(bench.settings(), clock).unwrap();
    let words = failure(&client).await;
    assert!(words.contains("expired"), "{words}");
    bench.write("root.pem", &Pki::root("root").pem());
    let words = failure(&bench.client()).await;
    assert!(words.contains("invalid peer certificate"), "{words}");
    assert_eq!(bench.server.seen(), []);
}

#[tokio::test]
async fn the_servers_root_may_be_replaced_while_the_agent_runs() {
    let bench = Bench::new().await;
    bench.sign(HOUR);
    let client = bench.client();
    client.issue(request(WEB)).await.unwrap();
    let next = Pki::root("next");
    let successor = Server::start(next.server(&["localhost"])).await;
    let (root, leaf) = (bench.root.pem(), Arc::clone(&bench.root));
    successor.answer(move |csr, id| Ok(vec![leaf.certify(csr, id, HOUR), root.clone()]));
    bench.wire.lead_to(successor.address);
    client.issue(request(WEB)).await.unwrap();
    assert_eq!(bench.server.seen().len(), 2, "the connection of before is good");

    bench.write("root.pem", &format!("{}{}", bench.root.pem(), next.pem()));
    client.issue(request(WEB)).await.unwrap();
    assert_eq!(successor.seen().len(), 1);
    for broken in ["", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
        bench.write("root.pem", broken);
        client.issue(request(WEB)).await.unwrap();
    }
    std::fs::remove_file(bench.path("root.pem")).unwrap();
    client.issue(request(WEB)).await.unwrap();
    bench.write("root.pem", &bench.root.pem());
    let words = failure(&client).await;
    assert!(
        words.contains("invalid peer certificate"),
        "a root that is gone vouches for nobody: {words}"
    );
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_once() {
    let bench = Bench::new().await;
    let new = |settings| IstioCa::new(settings, Arc::new(SystemClock)).unwrap_err().to_string();
    for address in ["", "localhost:15012", "http://localhost:15012", "https://"] {
        let words = new(IstioCaSettings { address: address.to_owned(), ..bench.settings() });
        assert!(words.contains("write https://host:port"), "{words}");
    }
    let words = new(IstioCaSettings { root_cert: "/nonexistent".into(), ..bench.settings() });
    assert!(words.starts_with("cannot read the CA's root /nonexistent: "), "{words}");
    bench.write("root.pem", "nothing");
    let words = new(bench.settings());
    assert!(words.contains("root.pem: there is no root certificate"), "{words}");
    let words = new(IstioCaSettings { server_name: Some("a b".to_owned()), ..bench.settings() });
    assert!(!words.is_empty());
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_asked_for_again() {
    let bench = Bench::new().await;
    bench.server.hang();
    let client = Arc::new(bench.client());
    let asked = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.issue(request(WEB)).await.unwrap_err().to_string() }
    });
    while bench.server.seen().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bench.wire.down();
    let words = asked.await.unwrap();
    assert!(words.starts_with("the CA cannot be asked for a certificate for spiffe://"), "{words}");
    failure(&client).await;
    bench.wire.restore();
    bench.sign(HOUR);
    client.issue(request(WEB)).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_leads_nowhere_is_given_up_with_its_request() {
    let bench = Bench::new().await;
    bench.sign(HOUR);
    let client = bench.client();
    client.issue(request(WEB)).await.unwrap();
    client.issue(request(WEB)).await.unwrap();
    assert_eq!(bench.wire.accepted(), 1, "one connection serves several requests");
    bench.wire.freeze();
    let limit = Duration::from_millis(300);
    tokio::time::timeout(limit, client.issue(request(WEB))).await.unwrap_err();
    client.issue(request(WEB)).await.unwrap();
    assert_eq!(bench.wire.accepted(), 2);
}

#[tokio::test]
async fn a_slow_ca_is_waited_for_and_a_silent_one_is_asked_again() {
    let bench = Bench::new().await;
    bench.server.hang();
    let store = bench.store();
    let words = complaint(&store).await;
    assert!(words.contains("did not answer"), "{words}");
    bench.sign(HOUR);
    let start = Instant::now();
    store.wait(&id(), Duration::from_secs(10)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn certificates_outlive_the_ca_until_they_expire_and_return_with_it() {
    let bench = Bench::new().await;
    bench.sign(4);
    let store = bench.store();
    store.want(&id());
    let first = store.wait(&id(), Duration::from_secs(10)).await.unwrap();
    bench.wire.down();
    let before = bench.server.seen().len();
    while first.is_valid() {
        assert!(store.get(&id()).is_some(), "a certificate that is good was not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(store.get(&id()).is_none(), "an expired certificate was offered");
    let dialled = bench.wire.accepted();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(store.get(&id()).is_none());
    assert!(bench.wire.accepted() - dialled <= 6, "more than one request a second");
    assert_eq!(bench.server.seen().len(), before);
    bench.sign(HOUR);
    bench.wire.restore();
    let start = Instant::now();
    store.wait(&id(), Duration::from_secs(15)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
