//! The examples of Istio's reference and tasks, each with the connections that its text promises to admit
//! or refuse (<https://istio.io/latest/docs/reference/config/security/>).
#![expect(clippy::unwrap_used, reason = "a test that fails says where")]

use std::collections::BTreeMap;

use sluice_policy::{
    Connection, Coverage, DenyReason,
    MtlsMode::{self, Disable, Permissive, Strict},
    PolicySet, Verdict, Withheld, WorkloadPolicy, read,
};
use sluice_spiffe::SpiffeId;

const ROOT: &str = "istio-system";

fn compile(text: &str) -> PolicySet {
    let objects = read("test.yaml", text).unwrap_or_else(|error| panic!("{error}"));
    PolicySet::compile(&objects, &[], ROOT).set
}

fn workload(set: &PolicySet, namespace: &str, labels: &[(&str, &str)]) -> WorkloadPolicy {
    let labels: BTreeMap<String, String> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    set.for_workload(namespace, &labels)
}

fn ask(policy: &WorkloadPolicy, principal: Option<&str>, source: &str, port: u16) -> Verdict {
    let principal: Option<SpiffeId> =
        principal.map(|principal| format!("spiffe://{principal}").parse().unwrap());
    policy.decide(&Connection {
        principal: principal.as_ref(),
        source: source.parse().unwrap(),
        destination: ("10.9.9.9".parse::<std::net::IpAddr>().unwrap(), port).into(),
    })
}

fn not_allowed() -> Verdict {
    Verdict::Deny(DenyReason::NotAllowed)
}

fn denied_by(name: &str) -> Verdict {
    Verdict::Deny(DenyReason::DeniedBy(name.into()))
}

#[test]
fn without_policies_everything_may_pass() {
    let policy = workload(&PolicySet::default(), "foo", &[]);
    assert_eq!(ask(&policy, None, "10.0.0.1", 80), Verdict::Allow);
    assert_eq!(policy.mode(80), MtlsMode::Permissive);
}

#[test]
fn allow_nothing_is_a_policy_with_an_empty_spec() {
    for spec in ["{}", "{action: ALLOW}", "{rules: []}", ""] {
        let set = compile(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: allow-nothing, namespace: foo}}\nspec: {spec}\n"
        ));
        let inside = workload(&set, "foo", &[]);
        assert_eq!(
            ask(&inside, Some("cluster.local/ns/foo/sa/a"), "10.0.0.1", 80),
            not_allowed(),
            "{spec}"
        );
        assert_eq!(ask(&workload(&set, "bar", &[]), None, "10.0.0.1", 80), Verdict::Allow);
    }
}

#[test]
fn deny_all_and_allow_all_are_policies_with_an_empty_rule() {
    let policy = |action: &str| {
        compile(&format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: everything, namespace: foo}}\nspec:\n  action: {action}\n  rules:\n  - {{}}\n"
        ))
    };
    let denying = workload(&policy("DENY"), "foo", &[]);
    assert_eq!(ask(&denying, None, "10.0.0.1", 80), denied_by("foo/everything"));
    assert_eq!(
        denied_by("foo/everything"),
        ask(&denying, Some("cluster.local/ns/foo/sa/a"), "10.0.0.1", 80)
    );
    let allowing = workload(&policy("ALLOW"), "foo", &[]);
    assert_eq!(ask(&allowing, None, "10.0.0.1", 80), Verdict::Allow);
}

#[test]
fn a_deny_without_rules_denies_nothing() {
    let set = compile(
        "apiVersion: security.istio.io/v1beta1\nkind: AuthorizationPolicy\n\
         metadata: {name: idle, namespace: foo}\nspec: {action: DENY}\n",
    );
    assert_eq!(ask(&workload(&set, "foo", &[]), None, "10.0.0.1", 80), Verdict::Allow);
}

#[test]
fn the_first_example_of_the_reference_without_its_http_conditions() {
    let set = compile(
        r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: httpbin
  namespace: foo
spec:
  action: ALLOW
  rules:
  - from:
    - source:
        principals: ["cluster.local/ns/default/sa/curl"]
    - source:
        namespaces: ["test"]
    to:
    - operation:
        ports: ["8080"]
"#,
    );
    let policy = workload(&set, "foo", &[("app", "httpbin")]);
    let curl = Some("cluster.local/ns/default/sa/curl");
    assert_eq!(ask(&policy, curl, "10.0.0.1", 8080), Verdict::Allow);
    assert_eq!(ask(&policy, Some("td/ns/test/sa/any"), "10.0.0.1", 8080), Verdict::Allow);
    assert_eq!(ask(&policy, curl, "10.0.0.1", 9090), not_allowed());
    assert_eq!(
        ask(&policy, Some("cluster.local/ns/default/sa/curl2"), "10.0.0.1", 8080),
        not_allowed()
    );
    assert_eq!(ask(&policy, None, "10.0.0.1", 8080), not_allowed());
}

#[test]
fn deny_wins_over_allow_and_the_root_namespace_reaches_everywhere() {
    let set = compile(
        r"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ns-bar, namespace: istio-system}
spec:
  action: DENY
  rules:
  - from: [{source: {notNamespaces: [foo]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: selected, namespace: istio-system}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - from: [{source: {serviceAccounts: [foo/web]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: bar}
spec: {rules: [{}]}
",
    );
    let plain = workload(&set, "bar", &[]);
    assert_eq!(
        ask(&plain, Some("td/ns/baz/sa/a"), "10.0.0.1", 80),
        denied_by("istio-system/ns-bar")
    );
    assert_eq!(ask(&plain, None, "10.0.0.1", 80), denied_by("istio-system/ns-bar"));
    assert_eq!(ask(&plain, Some("td/ns/foo/sa/a"), "10.0.0.1", 80), Verdict::Allow);
    // A selector in the root namespace selects in every namespace.
    let database = workload(&set, "other", &[("app", "db"), ("tier", "x")]);
    assert_eq!(ask(&database, Some("td/ns/foo/sa/web"), "10.0.0.1", 80), Verdict::Allow);
    assert_eq!(ask(&database, Some("td/ns/foo/sa/a"), "10.0.0.1", 80), not_allowed());
    // The root namespace's own workloads are bound once.
    assert_eq!(workload(&set, ROOT, &[]).authorization_policies().count(), 1);
}

#[test]
fn service_accounts_are_whole_names_without_pattern() {
    // CVE-2026-39350: a dot in a name was taken for that of a regular expression.
    let set = compile(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: accounts, namespace: foo}\n\
         spec: {rules: [{from: [{source: {serviceAccounts: [my.app, bar/b]}}]}]}\n",
    );
    let policy = workload(&set, "foo", &[]);
    for (principal, verdict) in [
        ("td/ns/foo/sa/my.app", Verdict::Allow),
        ("td/ns/foo/sa/my-app", not_allowed()),
        ("td/ns/bar/sa/my.app", not_allowed()),
        ("td/ns/bar/sa/b", Verdict::Allow),
        ("td/ns/bar/sa/bb", not_allowed()),
        ("td/ns/bar/sa/b/c", not_allowed()),
    ] {
        assert_eq!(ask(&policy, Some(principal), "10.0.0.1", 80), verdict, "{principal}");
    }
}

#[test]
fn trust_domains_narrow_what_stands_beside_them() {
    let set = compile(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {name: domains, namespace: foo}\n\
         spec: {rules: [{from: [{source: {namespaces: [bar], trustDomains: [td-1]}}]}]}\n",
    );
    let policy = workload(&set, "foo", &[]);
    assert_eq!(ask(&policy, Some("td-1/ns/bar/sa/a"), "10.0.0.1", 80), Verdict::Allow);
    assert_eq!(ask(&policy, Some("td-2/ns/bar/sa/a"), "10.0.0.1", 80), not_allowed());
}

#[test]
fn a_wide_block_of_denied_addresses_is_not_undone_by_a_narrow_allowed_one() {
    // GO-2024-3208.
    let set = compile(
        r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-tens, namespace: foo}
spec: {action: DENY, rules: [{from: [{source: {ipBlocks: ["10.0.0.0/8"], notIpBlocks: ["10.1.0.0/16"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: one, namespace: foo}
spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.1, 10.1.0.1, "fd00::/64"]}}]}]}
"#,
    );
    let policy = workload(&set, "foo", &[]);
    assert_eq!(ask(&policy, None, "10.0.0.1", 80), denied_by("foo/no-tens"));
    assert_eq!(ask(&policy, None, "::ffff:10.0.0.1", 80), denied_by("foo/no-tens"));
    assert_eq!(ask(&policy, None, "10.1.0.1", 80), Verdict::Allow);
    assert_eq!(ask(&policy, None, "fd00::7", 80), Verdict::Allow);
    assert_eq!(ask(&policy, None, "fd00:0:0:1::7", 80), not_allowed());
}

#[test]
fn conditions_on_http_never_admit_and_never_disarm_a_deny() {
    let set = compile(
        r#"
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: mixed, namespace: foo}
spec:
  action: ALLOW
  rules:
  - to: [{operation: {methods: [GET], ports: ["80"]}}]
  - to: [{operation: {ports: ["81"]}}]
    when: [{key: "request.headers[x]", values: ["1"]}]
  - to: [{operation: {ports: ["82"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: port, namespace: bar}
spec: {action: DENY, rules: [{to: [{operation: {paths: ["/admin"], ports: ["80"]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: path, namespace: baz}
spec: {action: DENY, rules: [{to: [{operation: {paths: ["/admin"]}}]}]}
"#,
    );
    let foo = workload(&set, "foo", &[]);
    assert_eq!(ask(&foo, None, "10.0.0.1", 80), not_allowed());
    assert_eq!(ask(&foo, None, "10.0.0.1", 81), not_allowed());
    assert_eq!(ask(&foo, None, "10.0.0.1", 82), Verdict::Allow);
    let bar = workload(&set, "bar", &[]);
    assert_eq!(ask(&bar, None, "10.0.0.1", 80), denied_by("bar/port"));
    assert_eq!(ask(&bar, None, "10.0.0.1", 81), Verdict::Allow);
    assert_eq!(ask(&workload(&set, "baz", &[]), None, "10.0.0.1", 9), denied_by("baz/path"));
}

#[test]
fn peer_authentication_goes_from_mesh_to_port() {
    let set = compile(
        r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: foo}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: finance, namespace: foo}
spec:
  selector: {matchLabels: {app: finance}}
  mtls: {mode: STRICT}
  portLevelMtls:
    8080: {mode: DISABLE}
    "8081": {mode: UNSET}
    8082: {mode: PERMISSIVE}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: unset, namespace: bar}
spec:
  selector: {matchLabels: {app: finance}}
  portLevelMtls: {8080: {mode: PERMISSIVE}}
"#,
    );
    let modes = |namespace: &str, labels: &[(&str, &str)]| {
        let policy = workload(&set, namespace, labels);
        [80, 8080, 8081, 8082].map(|port| policy.mode(port))
    };
    assert_eq!(modes("other", &[("app", "finance")]), [Strict; 4]);
    assert_eq!(modes("foo", &[]), [Permissive; 4]);
    assert_eq!(modes("foo", &[("app", "finance")]), [Strict, Disable, Strict, Permissive]);
    assert_eq!(modes("bar", &[("app", "finance")]), [Strict, Permissive, Strict, Strict]);

    let finance = workload(&set, "foo", &[("app", "finance")]);
    let peer = Some("td/ns/foo/sa/a");
    assert_eq!(
        ask(&finance, None, "10.0.0.1", 80),
        Verdict::Deny(DenyReason::PlaintextUnderStrict)
    );
    assert_eq!(ask(&finance, peer, "10.0.0.1", 8080), Verdict::Deny(DenyReason::MtlsDisabled));
    assert_eq!(ask(&finance, None, "10.0.0.1", 8080), Verdict::Allow);
    assert_eq!(ask(&finance, peer, "10.0.0.1", 80), Verdict::Allow);
}

#[test]
fn of_several_peer_authentications_the_oldest_wins_and_a_dated_one_is_older() {
    let policy = |name: &str, created: &str, mode: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: foo{created}}}\nspec: {{mtls: {{mode: {mode}}}}}\n---\n"
        )
    };
    let old = ", creationTimestamp: \"2024-01-01T00:00:00Z\"";
    let new = ", creationTimestamp: \"2025-01-01T00:00:00Z\"";
    for (text, expected) in [
        (policy("a", new, "DISABLE") + &policy("b", old, "STRICT"), MtlsMode::Strict),
        (policy("a", "", "DISABLE") + &policy("b", new, "STRICT"), MtlsMode::Strict),
        (policy("b", "", "DISABLE") + &policy("a", "", "STRICT"), MtlsMode::Strict),
    ] {
        assert_eq!(workload(&compile(&text), "foo", &[]).mode(80), expected, "{text}");
    }
}

#[test]
fn a_selecting_peer_authentication_of_the_root_namespace_has_no_effect() {
    let set = compile(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {name: a, namespace: istio-system}\n\
         spec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}}\n",
    );
    for namespace in ["foo", ROOT] {
        assert_eq!(workload(&set, namespace, &[("app", "a")]).mode(80), MtlsMode::Permissive);
    }
}

#[test]
fn what_cannot_be_read_is_denied_where_it_could_apply() {
    let withheld = |coverage| {
        let withheld = Withheld { origin: "broken.yaml".into(), coverage };
        PolicySet::compile(&[], &[withheld], ROOT).set
    };
    let unknown = Verdict::Deny(DenyReason::PolicyUnknown("broken.yaml".into()));
    let peer = Some("td/ns/foo/sa/a");
    let one = withheld(Coverage::Namespaces(["foo".to_owned()].into()));
    assert_eq!(ask(&workload(&one, "foo", &[]), peer, "10.0.0.1", 80), unknown);
    assert_eq!(ask(&workload(&one, "bar", &[]), peer, "10.0.0.1", 80), Verdict::Allow);
    for all in [Coverage::Mesh, Coverage::Namespaces([ROOT.to_owned()].into())] {
        assert_eq!(ask(&workload(&withheld(all), "bar", &[]), peer, "10.0.0.1", 80), unknown);
    }
}
