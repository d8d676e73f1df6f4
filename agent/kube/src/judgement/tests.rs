//! How policies are judged, and when their status is written.

use super::*;

fn key(kind: ObjectKind, name: &str) -> Key {
    Key { kind, namespace: "shop".into(), name: name.into() }
}

fn object(spec: &Value, status: &Value) -> Value {
    json!({
        "metadata": {
            "uid": "u", "resourceVersion": "7", "generation": 3, "labels": {"a": "b"},
            "creationTimestamp": "2026-01-31T12:00:00Z", "managedFields": [{"manager": "kubectl"}],
        },
        "spec": spec,
        "status": status,
    })
}

fn policy(kind: ObjectKind, name: &str, spec: &Value) -> (Key, Policy) {
    let key = key(kind, name);
    let policy = Policy::read(&key, &object(spec, &Value::Null), None);
    (key, policy)
}

fn verdict(spec: &Value) -> Judgement {
    let (key, policy) = policy(ObjectKind::AuthorizationPolicy, "p", spec);
    judge(&[(key.clone(), policy)].into(), "istio-system", &domain()).remove(&key).unwrap()
}

fn domain() -> TrustDomain {
    "example.org".parse().unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

#[test]
fn a_policy_of_l4_is_accepted_as_written() {
    let judgement = verdict(&json!({"rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}));
    let expected =
        Judgement { is_accepted: true, reason: "Accepted", message: "enforced as written".into() };
    assert_eq!(judgement, expected);
}

#[test]
fn a_field_of_l7_is_named_with_what_it_means() {
    let judgement = verdict(&json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]}));
    assert!(judgement.is_accepted);
    assert_eq!(judgement.reason, "AcceptedWithWarnings");
    let said = "spec.rules[0].to[0].operation.methods: L4 cannot check this HTTP condition, so this ALLOW rule \
                never matches";
    assert_eq!(judgement.message, said);
}

#[test]
fn a_principal_of_istios_default_trust_domain_is_named_in_another() {
    let rules =
        |principal: &str| json!({"rules": [{"from": [{"source": {"principals": [principal]}}]}]});
    let judgement = verdict(&rules("cluster.local/ns/shop/sa/web"));
    assert_eq!(judgement.reason, "AcceptedWithWarnings");
    assert!(judgement.message.contains("write example.org there"), "{}", judgement.message);
    assert_eq!(verdict(&rules("example.org/ns/shop/sa/web")).reason, "Accepted");
}

#[test]
fn what_cannot_be_enforced_is_refused_with_field_and_consequence() {
    for (spec, said) in [
        (json!({"action": "AUDIT"}), "spec.action: \"AUDIT\" is not enforced here"),
        (json!({"rulez": []}), "unknown field `rulez`"),
    ] {
        let judgement = verdict(&spec);
        assert!(!judgement.is_accepted);
        assert_eq!(judgement.reason, "NotEnforceable");
        assert!(judgement.message.contains(said), "{}", judgement.message);
        assert!(judgement.message.contains("others deny every connection"));
        assert!(!judgement.message.contains("kubernetes:1"), "no place: {}", judgement.message);
    }
}

#[test]
fn of_two_that_disagree_the_newer_says_which_wins() {
    let strict = json!({"mtls": {"mode": "STRICT"}});
    let policies: BTreeMap<_, _> =
        ["a", "b"].map(|name| policy(ObjectKind::PeerAuthentication, name, &strict)).into();
    let judged = judge(&policies, "istio-system", &domain());
    let of = |name| &judged[&key(ObjectKind::PeerAuthentication, name)];
    assert_eq!(of("a").reason, "Accepted");
    assert!(of("b").message.contains("not in force where PeerAuthentication shop/a applies"));
}

#[test]
fn a_condition_is_written_once_and_others_stay() {
    let theirs = json!({"type": "Reconciled", "status": "True"});
    let key = key(ObjectKind::AuthorizationPolicy, "p");
    let spec = json!({"action": "AUDIT"});
    let read = |conditions: &Value| {
        Policy::read(&key, &object(&spec, &json!({"conditions": conditions})), None)
    };
    let policy = read(&json!([theirs]));
    let judgement = verdict(&spec);
    let first = policy.conditions_with(&judgement, at("2026-02-01T00:00:00.5Z")).unwrap();
    assert_eq!(first[0], theirs);
    assert_eq!(first[1]["type"], CONDITION);
    assert_eq!(first[1]["status"], "False");
    assert_eq!(first[1]["observedGeneration"], 3);
    assert_eq!(first[1]["lastTransitionTime"], "2026-02-01T00:00:00Z");

    let written = read(&json!(first));
    let later = at("2026-02-02T00:00:00Z");
    assert_eq!(written.conditions_with(&judgement, later), None, "nothing changed");

    let other = Judgement { message: "other".to_owned(), ..judgement.clone() };
    let second = written.conditions_with(&other, later).unwrap();
    assert_eq!(second.len(), 2);
    assert_eq!(second[1]["lastTransitionTime"], "2026-02-01T00:00:00Z", "still False");
    let better = Judgement { is_accepted: true, ..other };
    let third = written.conditions_with(&better, later).unwrap();
    assert_eq!(third[1]["lastTransitionTime"], "2026-02-02T00:00:00Z");
}

#[test]
fn what_was_read_is_kept_while_only_the_status_changes() {
    let (key, first) = policy(ObjectKind::AuthorizationPolicy, "p", &json!({}));
    let later = object(&json!({}), &json!({"conditions": [{"type": "x"}]}));
    let second = Policy::read(&key, &later, Some(first.clone()));
    assert_eq!((second.text, second.conditions.len()), (first.text, 1));
}

#[test]
fn messages_have_an_end() {
    let said: Vec<String> = (0..1000).map(|n| format!("spec.rules[{n}]: never matches")).collect();
    let message = bounded(&said);
    assert!(message.len() <= MAX_MESSAGE + 20, "{}", message.len());
    assert!(message.ends_with(" more"), "{message}");
    assert!(bounded(&["x".repeat(100_000)]).len() <= MAX_MESSAGE);
}
