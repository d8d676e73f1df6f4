//! How the judge takes the API server's answers, and its silence.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use kube::core::Status;

use super::*;

fn accounts() -> BTreeSet<String> {
    ["system:serviceaccount:sluice-system:sluice-agent".to_owned()].into()
}

fn status(changed: &serde_json::Value) -> TokenReviewStatus {
    let mut status = serde_json::json!({
        "authenticated": true,
        "audiences": ["sluice-ca"],
        "user": {
            "username": "system:serviceaccount:sluice-system:sluice-agent",
            "extra": {NODE: ["n1"], POD: ["agent-x"], POD_UID: ["u"]},
        },
    });
    for (key, value) in changed.as_object().unwrap() {
        status[key] = value.clone();
    }
    serde_json::from_value(status).unwrap()
}

fn read(changed: &serde_json::Value) -> Result<Known, String> {
    read_status(status(changed), "sluice-ca", &accounts())
}

#[test]
fn a_known_token_tells_its_node_and_pod() {
    let known = read(&serde_json::json!({})).unwrap();
    assert_eq!(known.node.as_deref(), Some("n1"));
    assert_eq!(known.pod, Some(("u".to_owned(), "agent-x".to_owned())));
    let bound_to_pod = serde_json::json!({"user": {
        "username": "system:serviceaccount:sluice-system:sluice-agent",
        "extra": {POD: ["agent-x"], POD_UID: ["u"]},
    }});
    assert_eq!(read(&bound_to_pod).unwrap().node, None);
}

#[test]
fn a_token_that_is_not_an_agents_is_refused_whatever_it_says() {
    let user = |name: &str| serde_json::json!({"user": {"username": name}});
    for (changed, said) in [
        (serde_json::json!({"authenticated": false}), "does not know it"),
        (serde_json::json!({"authenticated": false, "error": "expired"}), "says: expired"),
        (serde_json::json!({"authenticated": null}), "does not know it"),
        (serde_json::json!({"audiences": ["https://kubernetes"]}), "not made for sluice-ca"),
        (serde_json::json!({"audiences": null}), "not made for sluice-ca"),
        (serde_json::json!({"user": null}), "\"\" is not"),
        (user("sluice-agent"), "is not the service account of an agent"),
        (user("system:serviceaccount:other:sluice-agent"), "is not the service account"),
    ] {
        let refusal = read(&changed).unwrap_err();
        assert!(refusal.contains(said), "{refusal}");
    }
}

#[test]
fn a_claim_with_several_values_is_none() {
    let two = serde_json::json!({"user": {
        "username": "system:serviceaccount:sluice-system:sluice-agent",
        "extra": {NODE: ["n1", "n2"]},
    }});
    assert_eq!(read(&two).unwrap().node, None);
}

/// Returns a judge without an API server that knew one token before, with this answer until this moment.
fn forsaken(token: &str, until: Instant, answer: Result<AgentToken, String>) -> TokenJudge {
    let config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let server = ApiServer(kube::Client::try_from(config).unwrap());
    let account = ("sluice-system".to_owned(), "sluice-agent".to_owned());
    let judge =
        TokenJudge::new(&server, PodPlaces::listed_none(), "sluice-ca".to_owned(), &[account]);
    let fresh_until = Instant::now();
    let entry = Remembered { fresh_until, until, pod_uid: None, answer };
    judge.remembered.lock().unwrap().insert(Sha256::digest(token).into(), entry);
    judge
}

fn token() -> String {
    let claims = serde_json::json!({
        "sub": "system:serviceaccount:sluice-system:sluice-agent",
        "aud": ["sluice-ca"],
        "exp": 99_999_999_999_u64,
    });
    format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

fn agent() -> AgentToken {
    AgentToken { node: "n1".to_owned(), name: "sluice-system/sluice-agent on n1".to_owned() }
}

fn later() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

#[tokio::test]
async fn a_token_that_was_known_is_believed_while_the_api_server_is_away() {
    let judge = forsaken(&token(), later(), Ok(agent()));
    assert_eq!(judge.judge(&token()).await, Ok(agent()));
    let unknown = token() + "x";
    assert!(matches!(judge.judge(&unknown).await, Err(TokenFault::Unknown(_))));
}

#[tokio::test]
async fn a_token_that_has_ended_or_was_refused_or_whose_pod_is_gone_is_not() {
    let ended = forsaken(&token(), Instant::now(), Ok(agent()));
    assert!(matches!(ended.judge(&token()).await, Err(TokenFault::Unknown(_))));
    let refused = forsaken(&token(), later(), Err("nobody's".to_owned()));
    assert!(matches!(refused.judge(&token()).await, Err(TokenFault::Unknown(_))));
    let gone = forsaken(&token(), later(), Ok(agent()));
    for entry in gone.remembered.lock().unwrap().values_mut() {
        entry.pod_uid = Some("u".to_owned());
    }
    assert!(matches!(gone.judge(&token()).await, Err(TokenFault::Unknown(_))));
}

#[tokio::test]
async fn a_good_answer_is_kept_until_the_token_ends_and_fresh_for_less() {
    let judge = forsaken("another", later(), Ok(agent()));
    let outline = Outline::read(&token()).unwrap();
    judge.remember([7; 32], &outline, None, Ok(agent()));
    judge.remember([8; 32], &outline, None, Err("nobody's".to_owned()));
    let remembered = judge.remembered.lock().unwrap();
    let (good, bad) = (&remembered[&[7; 32]], &remembered[&[8; 32]]);
    assert!(
        good.fresh_until <= Instant::now() + MEMORY && good.until > Instant::now() + MEMORY * 2
    );
    assert!(bad.until <= Instant::now() + REFUSAL_MEMORY);
}

#[test]
fn an_api_server_that_says_no_is_not_away() {
    let answered = |code| kube::Error::Api(Box::new(Status { code, ..Status::default() }));
    assert!(is_refusal(&answered(403)) && is_refusal(&answered(404)));
    assert!(!is_refusal(&answered(429)) && !is_refusal(&answered(503)));
}
