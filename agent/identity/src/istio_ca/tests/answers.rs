//! What the CA says: certificates, refusals, and things that are neither.

use tonic::{Code, Status};

use super::{server::Seen, *};

fn id() -> sluice_spiffe::SpiffeId {
    WEB.parse().unwrap()
}

#[tokio::test]
async fn a_request_is_what_istios_clients_send_and_the_certificate_is_used() {
    let bench = Bench::new().await;
    bench.sign(HOUR);
    let store = bench.store();
    store.want(&id());
    let identity = store.wait(&id(), Duration::from_secs(10)).await.unwrap();
    assert_eq!(identity.id(), &id());
    assert_eq!(identity.chain().len(), 1, "the root is not shown to peers");
    let expected = Seen {
        token: "Bearer token-1".to_owned(),
        cluster: "Kubernetes".to_owned(),
        identity: Some(WEB.to_owned()),
        seconds: 86_400,
    };
    assert_eq!(bench.server.seen(), [expected]);
}

#[tokio::test]
async fn without_impersonation_the_identity_is_not_named() {
    let bench = Bench::new().await;
    let root = Arc::clone(&bench.root);
    bench.server.answer(move |csr, _| Ok(vec![root.certify(csr, WEB, HOUR)]));
    let settings = IstioCaSettings { impersonate: false, ..bench.settings() };
    let client = IstioCa::new(settings, Arc::new(SystemClock)).unwrap();
    client.issue(request(WEB)).await.unwrap();
    assert_eq!(bench.server.seen()[0].identity, None);
}

#[tokio::test]
async fn intermediates_are_shown_and_roots_passed_on_if_they_are_to_be_believed() {
    let bench = Bench::new().await;
    let (root, next) = (Arc::clone(&bench.root), Pki::root("next"));
    let below = root.below("below");
    let both = [root.der(), next.der()];
    bench.server.answer(move |csr, id| {
        let roots = format!("{}{}", root.pem(), next.pem());
        Ok(vec![below.certify(csr, id, HOUR), below.pem(), roots])
    });
    let store = bench.store();
    store.want(&id());
    let identity = store.wait(&id(), Duration::from_secs(10)).await.unwrap();
    assert_eq!(identity.chain().len(), 2);

    let client = bench.client();
    client.issue(request(WEB)).await.unwrap();
    assert_eq!(*client.delivered().borrow(), Delivered::default());
    let settings = IstioCaSettings { believe_roots: true, ..bench.settings() };
    let client = IstioCa::new(settings, Arc::new(SystemClock)).unwrap();
    let mut delivered = client.delivered();
    client.issue(request(WEB)).await.unwrap();
    assert!(delivered.has_changed().unwrap());
    assert_eq!(delivered.borrow_and_update().local, both);
    client.issue(request(WEB)).await.unwrap();
    assert!(!delivered.has_changed().unwrap(), "the same roots again");
}

#[tokio::test]
async fn refusals_come_in_the_cas_words_and_troubles_are_told_apart() {
    let bench = Bench::new().await;
    let client = bench.client();
    for (code, refused) in [
        (Code::PermissionDenied, true),
        (Code::Unauthenticated, true),
        (Code::InvalidArgument, true),
        (Code::Unavailable, false),
        (Code::Internal, false),
        (Code::ResourceExhausted, false),
        (Code::Unimplemented, false),
        (Code::DeadlineExceeded, false),
    ] {
        bench.server.answer(move |_, _| Err(Status::new(code, "no pod of\nthis node")));
        let error = client.issue(request(WEB)).await.unwrap_err();
        let words = error.to_string();
        assert_eq!(matches!(error, IssueError::Refused { .. }), refused, "{words}");
        assert_eq!(matches!(error, IssueError::Unreachable { .. }), !refused, "{words}");
        assert!(
            words.contains("no pod of this node") && words.contains(&format!("{code:?}")),
            "{words}"
        );
    }
}

type Answer = Box<dyn Fn(&str, &str) -> Vec<String> + Send + Sync>;

/// Answers that are not usable certificates, each with words of the complaint.
fn garbage(root: &Arc<Pki>) -> Vec<(&'static str, Answer)> {
    fn of(root: &Arc<Pki>, make: fn(&Pki, &str, &str) -> Vec<String>) -> Answer {
        let root = Arc::clone(root);
        Box::new(move |csr, id| make(&root, csr, id))
    }
    let another_key = |root: &Pki, _: &str, id: &str| {
        vec![root.certify(&request(id).csr_pem(), id, HOUR), root.pem()]
    };
    vec![
        (
            "but issued one for",
            of(root, |root, csr, _| vec![root.certify(csr, OTHER, HOUR), root.pem()]),
        ),
        ("does not fit its key", of(root, another_key)),
        ("CertExpired", of(root, |root, csr, id| vec![root.certify(csr, id, -HOUR), root.pem()])),
        (
            "begins with the certificate of an authority",
            of(root, |root, csr, id| vec![root.pem(), root.certify(csr, id, HOUR)]),
        ),
        (
            "UnknownIssuer",
            of(root, |_, csr, id| {
                let strange = Pki::root("strange");
                vec![strange.certify(csr, id, HOUR), strange.pem()]
            }),
        ),
        (
            "peers would refuse",
            of(root, |root, csr, id| vec![root.below("below").certify(csr, id, HOUR), root.pem()]),
        ),
        (
            "is not of trust domain",
            of(root, |root, csr, _| {
                vec![root.certify(csr, "spiffe://elsewhere/ns/shop/sa/web", HOUR), root.pem()]
            }),
        ),
        ("holds no certificate", of(root, |_, _, _| vec![])),
        ("holds no certificate", of(root, |_, _, _| vec!["{\"error\": \"no\"}".to_owned()])),
        (
            "is not a certificate chain",
            of(root, |root, csr, id| {
                vec![root.certify(csr, id, HOUR).replacen("MII", "!!!", 1), root.pem()]
            }),
        ),
        (
            "is not that of an authority",
            of(root, |root, csr, id| {
                vec![root.certify(csr, id, HOUR), root.certify(csr, OTHER, HOUR)]
            }),
        ),
        (
            "at most 16",
            of(root, |root, csr, id| {
                let leaf = root.certify(csr, id, HOUR);
                std::iter::once(leaf).chain(std::iter::repeat_n(root.pem(), 40)).collect()
            }),
        ),
        ("OutOfRange", of(root, |_, _, _| vec!["x".repeat(1_000_000)])),
    ]
}

#[tokio::test]
async fn garbage_is_refused_with_its_reason_and_the_next_good_answer_is_used() {
    let bench = Bench::new().await;
    for (words, answer) in garbage(&bench.root) {
        bench.server.answer(move |csr, id| Ok(answer(csr, id)));
        let store = bench.store();
        let complaint = complaint(&store).await;
        assert!(complaint.contains(words) && complaint.contains(WEB), "{words}: {complaint}");
    }
    let store = bench.store();
    complaint(&store).await;
    bench.sign(HOUR);
    store.wait(&id(), Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_root_is_not_needed_in_the_answer() {
    let bench = Bench::new().await;
    let root = Arc::clone(&bench.root);
    bench.server.answer(move |csr, id| Ok(vec![root.certify(csr, id, HOUR)]));
    let store = bench.store();
    store.want(&id());
    store.wait(&id(), Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn the_token_is_read_for_every_request() {
    let bench = Bench::new().await;
    bench.sign(HOUR);
    let client = bench.client();
    client.issue(request(WEB)).await.unwrap();
    bench.write("token", "token-2");
    client.issue(request(WEB)).await.unwrap();
    let tokens: Vec<String> = bench.server.seen().into_iter().map(|seen| seen.token).collect();
    assert_eq!(tokens, ["Bearer token-1", "Bearer token-2"]);
    for (text, words) in [("", "holds no token"), ("a\nb", "holds no token")] {
        bench.write("token", text);
        let error = client.issue(request(WEB)).await.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("token"), "{error}");
    }
    std::fs::remove_file(bench.path("token")).unwrap();
    let error = client.issue(request(WEB)).await.unwrap_err().to_string();
    assert!(error.contains("cannot read the token"), "{error}");
    assert_eq!(bench.server.seen().len(), 2, "nothing was sent without a token");
}
