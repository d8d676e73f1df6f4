//! What is refused, by line, field and next step; and what is remarked on.

use std::collections::BTreeSet;

use sluice_policy::{
    Coverage, Finding, Meaning, PolicySet, Severity, coverage, foreign_principals, read,
};

const HEAD: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                    metadata: {name: a, namespace: shop}\n";

fn refusal(text: &str) -> String {
    match read("p.yaml", text) {
        Ok(objects) => panic!("accepted: {text}\n{objects:?}"),
        Err(error) => error.to_string(),
    }
}

fn findings(text: &str) -> Vec<Finding> {
    let objects = read("p.yaml", text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    PolicySet::compile(&objects, &[], "istio-system").findings
}

/// Faulty specs, each on line 4 of an object, and words of the message that refuses them.
const FAULTS: &[(&str, &str)] = &[
    ("spec: {rule: []}", "p.yaml:4:8: unknown field `rule`"),
    ("spec: {rules: {}}", "p.yaml:4:15: expected sequence"),
    ("spec: {action: AUDIT}", "p.yaml:4: spec.action: \"AUDIT\" is not enforced here"),
    ("spec: {action: CUSTOM, provider: {name: x}}", "spec.action: \"CUSTOM\""),
    ("spec: {action: allow}", "spec.action: \"allow\""),
    ("spec: {provider: {name: x}}", "spec.provider: AuthorizationPolicy has no such field"),
    ("spec: {mtls: {mode: STRICT}}", "spec.mtls: AuthorizationPolicy has no such field"),
    (
        "spec: {targetRefs: [{kind: Service, name: x, group: ''}]}",
        "spec.targetRefs: policies that bind",
    ),
    ("spec: {targetRef: {kind: Gateway, name: x}}", "spec.targetRefs: policies that bind"),
    ("spec: {selector: {matchExpressions: []}}", "unknown field `matchExpressions`"),
    ("spec: {selector: {matchLabels: {app: 'x*'}}}", "spec.selector.matchLabels: \"app: x*\""),
    ("spec: {rules: [~]}", "spec.rules[0]: empty"),
    ("spec: {rules: [{}, {from: []}]}", "spec.rules[1].from: empty"),
    ("spec: {rules: [{from: [{}]}]}", "spec.rules[0].from[0]: empty"),
    ("spec: {rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0]: empty"),
    ("spec: {rules: [{from: [{source: {principals: []}}]}]}", "spec.rules[0].from[0]: empty"),
    ("spec: {rules: [{to: [{operation: {}}]}]}", "spec.rules[0].to[0]: empty"),
    ("spec: {rules: [{from: [{source: {principal: [a]}}]}]}", "unknown field `principal`"),
    (
        "spec: {rules: [{from: [{source: {principals: [a*b]}}]}]}",
        "source.principals: \"a*b\": '*' may only",
    ),
    ("spec: {rules: [{from: [{source: {principals: ['**']}}]}]}", "'*' may only"),
    (
        "spec: {rules: [{from: [{source: {principals: ['']}}]}]}",
        "source.principals: an empty value",
    ),
    ("spec: {rules: [{from: [{source: {principals: [null]}}]}]}", "cannot deserialize null"),
    (
        "spec: {rules: [{from: [{source: {principals: ['spiffe://a/b']}}]}]}",
        "without \"spiffe://\"",
    ),
    (
        "spec: {rules: [{from: [{source: {notPrincipals: ['spiffe://*']}}]}]}",
        "without \"spiffe://\"",
    ),
    (
        "spec: {rules: [{from: [{source: {serviceAccounts: ['a*']}}]}]}",
        "wildcards are not possible",
    ),
    ("spec: {rules: [{from: [{source: {serviceAccounts: [a/b/c]}}]}]}", "not a service account"),
    ("spec: {rules: [{from: [{source: {serviceAccounts: [/b]}}]}]}", "not a service account"),
    (
        "spec: {rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]}",
        "beside namespaces",
    ),
    ("spec: {rules: [{from: [{source: {trustDomains: [a/b]}}]}]}", "not a trust domain"),
    (
        "spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}",
        "ipBlocks: \"10.0.0.0/33\" is not an",
    ),
    ("spec: {rules: [{from: [{source: {ipBlocks: [10.0.0]}}]}]}", "\"10.0.0\" is not an address"),
    ("spec: {rules: [{to: [{operation: {ports: ['0']}}]}]}", "\"0\" is not a port"),
    ("spec: {rules: [{to: [{operation: {ports: ['+80']}}]}]}", "\"+80\" is not a port"),
    ("spec: {rules: [{to: [{operation: {ports: ['65536']}}]}]}", "\"65536\" is not a port"),
    (
        "spec: {rules: [{to: [{operation: {notPorts: [http]}}]}]}",
        "notPorts: \"http\" is not a port",
    ),
    ("spec: {rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0]: empty"),
    ("spec: {rules: [{when: [{values: [a]}]}]}", "spec.rules[0].when[0].key: missing"),
    (
        "spec: {rules: [{when: [{key: source.ipp, values: [a]}]}]}",
        "\"source.ipp\" is not a condition",
    ),
    (
        "spec: {rules: [{when: [{key: source.ip, values: [a]}]}]}",
        "when[0].values: \"a\" is not an address",
    ),
    ("spec: {rules: [{when: [~]}]}", "spec.rules[0].when[0]: empty"),
];

#[test]
fn faults_are_named_by_line_field_and_next_step() {
    for (spec, words) in FAULTS {
        let said = refusal(&format!("{HEAD}{spec}\n"));
        assert!(said.starts_with("p.yaml:4:"), "{spec}: {said}");
        assert!(said.contains(words), "{spec}: {said}");
    }
}

#[test]
fn envelopes_are_checked_too() {
    for (text, words) in [
        (
            "kind: AuthorizationPolicy\n",
            "p.yaml:1: kind: AuthorizationPolicy (nothing) is not a policy",
        ),
        (
            "apiVersion: apps/v1\nkind: Deployment\nspec: {replicas: 1}\n",
            "p.yaml:2: kind: Deployment (apps/v1)",
        ),
        (
            "apiVersion: security.istio.io/v1alpha1\nkind: PeerAuthentication\n",
            "(security.istio.io/v1alpha1)",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n",
            "RequestAuthentication",
        ),
        ("{}\n", "kind: nothing (nothing)"),
        ("- a\n", "p.yaml:1:1:"),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n",
            "p.yaml:2: metadata: missing",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\n",
            "namespace: missing",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a, namespace: A}\n",
            "metadata.namespace: \"A\" is not a Kubernetes name",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {name: a, namespace: b, creationTimestamp: yesterday}\n",
            "metadata.creationTimestamp: \"yesterday\"",
        ),
        (
            "apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Pod}]\n",
            "Pod (v1) is not a policy",
        ),
        ("apiVersion: v1\nkind: List\nspec: {}\n", "spec: a list has items"),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthenticationList\n\
             items: [{kind: AuthorizationPolicy, metadata: {name: a, namespace: b}}]\n",
            "this is a list of PeerAuthentication",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nkind: PeerAuthentication\n",
            "duplicate",
        ),
    ] {
        let said = refusal(text);
        assert!(said.contains(words), "{text}: {said}");
    }
}

#[test]
fn one_name_is_one_object() {
    let said = refusal(&format!("{HEAD}---\n{HEAD}"));
    assert!(
        said.contains(
            "p.yaml:6: metadata.name: AuthorizationPolicy shop/a is already defined at p.yaml:2"
        ),
        "{said}"
    );
}

#[test]
fn peer_authentications_have_faults_of_their_own() {
    for (spec, words) in [
        ("{mtls: {mode: strict}}", "spec.mtls.mode: \"strict\" is not a mode"),
        ("{mtls: {mod: STRICT}}", "unknown field `mod`"),
        (
            "{portLevelMtls: {80: {mode: STRICT}}}",
            "spec.portLevelMtls: portLevelMtls needs a selector",
        ),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}",
            "\"http\" is not a port",
        ),
        (
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: STRICT}, 080: {mode: DISABLE}}}",
            "port 80 is listed twice",
        ),
        ("{rules: [{}]}", "spec.rules: PeerAuthentication has no such field"),
        ("{action: ALLOW}", "spec.action: PeerAuthentication has no such field"),
    ] {
        let said = refusal(&format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: a, namespace: shop}}\nspec: {spec}\n"
        ));
        assert!(said.starts_with("p.yaml:4:") && said.contains(words), "{spec}: {said}");
    }
}

#[test]
fn what_is_accepted_in_part_is_remarked_on() {
    for (spec, field, meaning) in [
        (
            "{rules: [{to: [{operation: {methods: [GET]}}]}]}",
            "spec.rules[0].to[0].operation.methods",
            Meaning::AllowRuleNeverMatches,
        ),
        (
            "{action: DENY, rules: [{to: [{operation: {hosts: [a], ports: ['80']}}]}]}",
            "spec.rules[0].to[0].operation.hosts",
            Meaning::DenyRuleEnforcedWithout,
        ),
        (
            "{action: DENY, rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
            "spec.rules[0].from[0].source.requestPrincipals",
            Meaning::DenyRuleDeniesEverything,
        ),
        (
            "{action: DENY, rules: [{when: [{key: 'request.headers[x]', values: [a]}]}]}",
            "spec.rules[0].when[0].key (request.headers[x])",
            Meaning::DenyRuleDeniesEverything,
        ),
        ("{action: DENY}", "spec.rules", Meaning::DenyWithoutRules),
        (
            "{rules: [{from: [{source: {notPrincipals: [a]}}]}]}",
            "spec.rules[0]",
            Meaning::ExclusionMatchesPlaintext,
        ),
        (
            "{rules: [{from: [{source: {principals: [], namespaces: [a]}}]}]}",
            "spec.rules[0].from[0].source.principals",
            Meaning::EmptyList,
        ),
    ] {
        let found = findings(&format!("{HEAD}spec: {spec}\n"));
        assert_eq!(found.len(), 1, "{spec}: {found:?}");
        assert_eq!((found[0].field.as_str(), &found[0].meaning), (field, &meaning), "{spec}");
        assert!(found[0].to_string().starts_with("p.yaml:"), "{}", found[0]);
    }
    let silent = "{rules: [{from: [{source: {notPrincipals: [a]}}], when: [{key: source.namespace, values: [b]}]}]}";
    assert_eq!(findings(&format!("{HEAD}spec: {silent}\n")), []);
}

#[test]
fn a_dry_run_is_read_but_not_enforced() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                metadata: {name: a, namespace: shop, annotations: {istio.io/dry-run: \"true\"}}\nspec: {}\n";
    let found = findings(text);
    assert_eq!((found[0].severity, &found[0].meaning), (Severity::Warning, &Meaning::DryRun));
    let set = PolicySet::compile(&read("p", text).unwrap(), &[], "istio-system").set;
    assert_eq!(set.for_workload("shop", &[].into()).authorization_policies().count(), 0);
}

#[test]
fn peer_authentications_that_yield_are_remarked_on() {
    let policy = |name: &str, namespace: &str, label: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{selector: {{matchLabels: {{{label}}}}}, mtls: {{mode: STRICT}}}}\n---\n"
        )
    };
    let overlapping = policy("a", "shop", "app: x") + &policy("b", "shop", "tier: y");
    assert!(matches!(findings(&overlapping)[..], [Finding { meaning: Meaning::OlderWins(_), .. }]));
    let disjoint = policy("a", "shop", "app: x") + &policy("b", "shop", "app: y");
    assert_eq!(findings(&disjoint), []);
    let root = policy("a", "istio-system", "app: x");
    assert!(matches!(
        findings(&root)[..],
        [Finding { meaning: Meaning::SelectorInRootNamespace, .. }]
    ));
}

#[test]
fn lists_and_exports_are_read() {
    let exported = r#"{"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
        {"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
         "metadata": {"name": "a", "namespace": "shop", "uid": "1", "generation": 2, "labels": {"x": "y"}},
         "spec": {"rules": [{"to": [{"operation": {"ports": ["80"]}}]}]}, "status": {"conditions": []}}]}"#;
    let typed = "apiVersion: security.istio.io/v1\nkind: PeerAuthenticationList\n\
                 items:\n- metadata: {name: a, namespace: shop}\n  spec: {mtls: {mode: STRICT}}\n";
    for text in [exported, typed] {
        let objects = read("p.yaml", text).unwrap();
        assert_eq!(objects.len(), 1);
        assert_eq!(&*objects[0].id().namespace, "shop");
    }
    assert!(read("p.yaml", "# nothing yet\n---\n").unwrap().is_empty());
}

#[test]
fn the_outline_of_a_faulty_text_tells_what_it_could_cover() {
    let shop = || Coverage::Namespaces(BTreeSet::from(["shop".to_owned()]));
    assert_eq!(coverage(&format!("{HEAD}spec: {{action: AUDIT}}\n")), shop());
    assert_eq!(
        coverage("apiVersion: v1\nkind: List\nitems:\n- metadata: {namespace: shop}\n"),
        shop()
    );
    assert_eq!(coverage("kind: AuthorizationPolicy\nmetadata: {name: a}\n"), Coverage::Mesh);
    assert_eq!(coverage(&format!("{HEAD}---\n- broken: [\n")), Coverage::Mesh);
}

#[test]
fn principals_of_istios_default_trust_domain_are_named_in_another() {
    let text = format!(
        "{HEAD}spec: {{action: DENY, rules: [{{from: [{{source: {{principals: [cluster.local/ns/a/sa/b, 'cluster.local/*', \
         'cluster.local*', '*/ns/a/sa/b', example.org/ns/a/sa/b, other.org/ns/a/sa/b]}}}}]}}, {{when: [{{key: \
         source.principal, notValues: [cluster.local/ns/c/sa/d, cluster.local/ns/a/sa/b]}}]}}]}}"
    );
    let objects = read("p.yaml", &text).unwrap();
    let named = |domain: &str| {
        let findings = foreign_principals(&objects, &domain.parse().unwrap()).into_iter();
        findings.map(|finding| finding.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(named("cluster.local"), [""; 0]);
    let said = named("example.org");
    let expected =
        ["cluster.local/", "cluster.local/ns/a/sa/b", "cluster.local/ns/c/sa/d"].map(|principal| {
            format!(
                "p.yaml:2: AuthorizationPolicy shop/a: spec.rules: {principal:?} is of the trust domain cluster.local, \
                 which Istio takes for the mesh's own and this mesh does not, so no pod of it matches: write example.org \
                 there"
            )
        });
    assert_eq!(said, expected);
}
