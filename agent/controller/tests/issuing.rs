//! Whom the controller issues for and whom it refuses, over real TLS and gRPC.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

mod support;

use std::{fs, time::Duration};

use sluice_controller::{Limits, Rate};
use sluice_grpc::{
    Kind, Struct, Value,
    istio_ca::{IMPERSONATED_IDENTITY, IstioCertificateRequest, impersonating},
};
use sluice_tls::{Clock, SystemClock};
use support::{
    Ask, CART, DAY, MESH, ONE, Setup, TWO, WEB, csr, eventually, parts_of, rule, verified,
    write_tokens,
};
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

#[tokio::test]
async fn an_agent_obtains_the_identity_of_a_pod_on_its_node() {
    let controller = Setup::default().start().await;
    let client = controller.client().await;
    for names in [[].as_slice(), &[WEB]] {
        let chain = client.ask(&Ask { names, ..Ask::new(ONE, WEB) }).await.unwrap();
        let svid = verified(&chain);
        assert_eq!(svid.id.as_str(), WEB);
        let now = SystemClock.now().as_secs();
        assert!((now - 65..=now - 60).contains(&svid.not_before.as_secs()), "dated back a minute");
        assert_eq!(svid.not_after.as_secs() - svid.not_before.as_secs(), 3_660);
        let (path, roots) = parts_of(&chain);
        assert_eq!((path.len(), roots.len()), (1, 1), "the leaf first, the root last");
        let (_, leaf) = X509Certificate::from_der(&path[0]).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap().value;
        assert_eq!(names.general_names.len(), 1);
        let purposes = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(purposes.server_auth && purposes.client_auth);
    }
    let chain = client.ask(&Ask::new(TWO, CART)).await.unwrap();
    assert_eq!(verified(&chain).id.as_str(), CART);
}

#[tokio::test]
async fn a_node_obtains_nothing_of_another_node() {
    let controller = Setup::default().start().await;
    let client = controller.client().await;
    let placed = (Code::PermissionDenied, "pod-on-callers-node".to_owned());
    let ghost = "spiffe://cluster.local/ns/shop/sa/ghost";
    for (token, id) in [(ONE, CART), (TWO, WEB), (ONE, ghost)] {
        assert_eq!(client.refusal(&Ask::new(token, id)).await, placed, "{id}");
    }
    // What the CSR says decides nothing.
    let ask = Ask { names: &[CART], ..Ask::new(ONE, CART) };
    assert_eq!(client.refusal(&ask).await, placed);
    let status = client.ask(&Ask::new(ONE, CART)).await.unwrap_err();
    assert!(status.message().contains("runs on node one now, only on others"), "{status}");
}

#[tokio::test]
async fn the_identity_of_a_pod_that_left_is_refused_at_once() {
    let controller = Setup::default().start().await;
    let client = controller.client().await;
    client.ask(&Ask::new(ONE, WEB)).await.unwrap();
    let without = MESH.lines().filter(|line| !line.contains("web-1")).collect::<Vec<_>>();
    fs::write(controller.path("mesh.yaml"), without.join("\n")).unwrap();
    eventually("refused", async || client.ask(&Ask::new(ONE, WEB)).await.is_err()).await;
    let status = client.ask(&Ask::new(ONE, WEB)).await.unwrap_err();
    assert_eq!(rule(&status), (Code::PermissionDenied, "pod-on-callers-node".to_owned()));
    assert!(status.message().contains("no pod is known there at all"), "{status}");
    client.ask(&Ask::new(TWO, CART)).await.unwrap();
    // The pod comes back on the other node, where it belongs to the other agent.
    fs::write(controller.path("mesh.yaml"), MESH.replace("node: one", "node: two")).unwrap();
    eventually("issued", async || client.ask(&Ask::new(TWO, WEB)).await.is_ok()).await;
    assert_eq!(client.refusal(&Ask::new(ONE, WEB)).await.0, Code::PermissionDenied);
}

#[tokio::test]
async fn nothing_is_issued_while_nothing_is_known_of_the_mesh() {
    let controller = Setup { mesh: None, ..Setup::default() }.start().await;
    let client = controller.client().await;
    let refusal = client.refusal(&Ask::new(ONE, WEB)).await;
    assert_eq!(refusal, (Code::Unavailable, "pods-known".to_owned()));
    fs::write(controller.path("mesh.yaml"), MESH).unwrap();
    eventually("issued", async || client.ask(&Ask::new(ONE, WEB)).await.is_ok()).await;
}

#[tokio::test]
async fn a_caller_must_prove_itself() {
    let controller = Setup::default().start().await;
    let client = controller.client().await;
    let request = || IstioCertificateRequest {
        csr: csr(&[]),
        validity_duration: 3_600,
        metadata: Some(impersonating(WEB)),
    };
    let cut = &ONE[1..];
    for authorization in [
        None,
        Some("Bearer "),
        Some("Bearer"),
        Some(ONE),
        Some(&*format!("Basic {ONE}")),
        Some(&*format!("Bearer {cut}")),
        Some(&*format!("Bearer {ONE}x")),
        Some(&*format!("Bearer {ONE} ")),
        Some(&*format!("Bearer {}", "x".repeat(9_000))),
    ] {
        let status = client.send(request(), authorization).await.unwrap_err();
        let expected = (Code::Unauthenticated, "caller-token".to_owned());
        assert_eq!(rule(&status), expected, "{authorization:?}");
    }
    client.send(request(), Some(&format!("bearer {ONE}"))).await.unwrap();
}

#[tokio::test]
async fn tokens_change_while_it_serves() {
    let controller = Setup::default().start().await;
    let client = controller.client().await;
    let new = ONE.replace("one", "new");
    client.ask(&Ask::new(ONE, WEB)).await.unwrap();
    assert_eq!(client.refusal(&Ask::new(&new, WEB)).await.0, Code::Unauthenticated);
    let tokens = controller.path("tokens.yaml");
    write_tokens(&tokens, &[(&new, "one"), (TWO, "two")]);
    eventually("the new one", async || client.ask(&Ask::new(&new, WEB)).await.is_ok()).await;
    assert_eq!(client.refusal(&Ask::new(ONE, WEB)).await.0, Code::Unauthenticated);
    // A faulty file changes nothing, a file that is gone admits nobody.
    write_tokens(&tokens, &[("short", "one")]);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    client.ask(&Ask::new(&new, WEB)).await.unwrap();
    fs::remove_file(&tokens).unwrap();
    eventually("nobody", async || client.ask(&Ask::new(TWO, CART)).await.is_err()).await;
    assert_eq!(client.refusal(&Ask::new(TWO, CART)).await.0, Code::Unauthenticated);
}

#[tokio::test]
async fn what_is_no_workload_of_the_trust_domain_is_refused() {
    let controller = Setup::default().start().await;
    let client = controller.client().await;
    let long = format!("spiffe://cluster.local/{}", "a".repeat(2_048));
    for (id, code, name) in [
        ("spiffe://other.example/ns/shop/sa/web", Code::PermissionDenied, "identity-trust-domain"),
        ("spiffe://cluster.local", Code::PermissionDenied, "identity-trust-domain"),
        ("spiffe://cluster.local/ns/shop/sa/web/", Code::InvalidArgument, "identity-spiffe"),
        ("spiffe://CLUSTER.local/ns/shop/sa/web", Code::InvalidArgument, "identity-spiffe"),
        ("", Code::InvalidArgument, "identity-spiffe"),
        (&long, Code::InvalidArgument, "identity-spiffe"),
    ] {
        assert_eq!(client.refusal(&Ask::new(ONE, id)).await, (code, name.to_owned()), "{id}");
    }
    let number = Value { kind: Some(Kind::NumberValue(1.0)) };
    let number = Struct { fields: [(IMPERSONATED_IDENTITY.to_owned(), number)].into() };
    for metadata in [None, Some(Struct::default()), Some(number)] {
        let csr = csr(&[WEB]);
        let request = IstioCertificateRequest { csr, validity_duration: 3_600, metadata };
        let status = client.send(request, Some(&format!("Bearer {ONE}"))).await.unwrap_err();
        assert_eq!(rule(&status), (Code::InvalidArgument, "identity-named".to_owned()));
    }
}

#[tokio::test]
async fn a_lifetime_is_at_most_what_is_configured_and_at_least_a_minute() {
    let controller = Setup { ttl: Duration::from_mins(10), ..Setup::default() }.start().await;
    let client = controller.client().await;
    for (asked, granted) in [(60, 60), (600, 600), (601, 600), (i64::MAX, 600), (0, 600)] {
        let chain = client.ask(&Ask { seconds: asked, ..Ask::new(ONE, WEB) }).await.unwrap();
        let svid = verified(&chain);
        assert_eq!(svid.not_after.as_secs() - svid.not_before.as_secs(), granted + 60, "{asked}");
    }
    for seconds in [59, 1, -1, i64::MIN] {
        let refusal = client.refusal(&Ask { seconds, ..Ask::new(ONE, WEB) }).await;
        assert_eq!(refusal, (Code::InvalidArgument, "lifetime-minimum".to_owned()), "{seconds}");
    }
    assert!(DAY > Duration::from_mins(10));
}

#[tokio::test]
async fn a_request_that_is_not_sound_is_refused() {
    let controller = Setup::default().start().await;
    let client = controller.client().await;
    let rsa1024 = include_str!("../../tls/src/ca/request/rsa1024.csr");
    let whole = csr(&[WEB]);
    let middle = whole.len() / 2;
    let letter = if whole.as_bytes()[middle] == b'A' { "B" } else { "A" };
    let flipped = format!("{}{letter}{}", &whole[..middle], &whole[middle + 1..]);
    for (csr, name) in [
        (String::new(), "request-form"),
        (
            "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n".into(),
            "request-form",
        ),
        ("\0".repeat(1_000), "request-form"),
        (rsa1024.to_owned(), "request-key"),
        (flipped, "request-"),
        (csr(&[CART]), "request-names"),
        (csr(&[WEB, CART]), "request-names"),
    ] {
        let request = IstioCertificateRequest {
            csr: csr.clone(),
            validity_duration: 3_600,
            metadata: Some(impersonating(WEB)),
        };
        let status = client.send(request, Some(&format!("Bearer {ONE}"))).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{csr}: {status}");
        assert!(rule(&status).1.starts_with(name), "{csr}: {status}");
    }
}

#[tokio::test]
async fn one_caller_cannot_use_up_what_others_need() {
    let limits = Limits { issued: Rate { per_second: 1, burst: 3 }, ..Limits::default() };
    let controller = Setup { limits, ..Setup::default() }.start().await;
    let client = controller.client().await;
    let mut granted = 0;
    for _ in 0..20 {
        match client.ask(&Ask::new(ONE, WEB)).await {
            Ok(_) => granted += 1,
            Err(status) => {
                assert_eq!(rule(&status), (Code::ResourceExhausted, "caller-rate".to_owned()));
            }
        }
    }
    assert!((3..20).contains(&granted), "{granted}");
    client.ask(&Ask::new(TWO, CART)).await.unwrap();
}

#[tokio::test]
async fn a_hundred_ask_at_once() {
    let controller = Setup::default().start().await;
    let (first, second) = (controller.client().await, controller.client().await);
    for client in [&first, &second] {
        // By its first answer a client knows how many requests may be open at once.
        client.ask(&Ask::new(ONE, WEB)).await.unwrap();
    }
    let mut tasks = tokio::task::JoinSet::new();
    for turn in 0..100 {
        let client = if turn % 2 == 0 { first.clone() } else { second.clone() };
        tasks.spawn(async move {
            let (token, id) = if turn % 4 < 2 { (ONE, WEB) } else { (TWO, CART) };
            let svid = verified(&client.ask(&Ask::new(token, id)).await.unwrap());
            assert_eq!(svid.id.as_str(), id);
            svid.serial
        });
    }
    let mut serials = tasks.join_all().await;
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 100);
}
