//! What a configuration may say, and how a bad one is refused.

use super::*;

fn parse(text: &str) -> Result<ControllerConfig, ConfigError> {
    ControllerConfig::parse(Path::new("controller.yaml"), Path::new("/etc/sluice"), text)
}

#[test]
fn little_has_to_be_written() {
    let config = parse("callers: {tokens: tokens.yaml}\npods: {mesh: /run/mesh.yaml}\n").unwrap();
    assert_eq!(config.listen, "0.0.0.0:15012".parse().unwrap());
    assert_eq!((config.trust_domain.as_str(), config.ttl), ("cluster.local", DEFAULT_TTL));
    assert_eq!(config.server_names[0], "sluice-controller.sluice-system.svc");
    assert_eq!(config.ca, CaPlace::Embedded("/var/lib/sluice/ca".into()));
    assert_eq!(config.callers, CallersConfig::Tokens("/etc/sluice/tokens.yaml".into()));
    assert_eq!(config.pods, PodsConfig::Mesh("/run/mesh.yaml".into()));
    assert_eq!((config.log_level.as_str(), config.metrics), ("info", None));
}

#[test]
fn everything_can_be_written() {
    let config = parse(
        "listen: '[::1]:443'\ntrustDomain: example.org\nmetrics: 127.0.0.1:1\nttl: 90m\nserverNames: [ca.example, 127.0.0.1]\n\
         ca: {mode: pem, dir: ca}\nlogLevel: debug\npods: kubernetes\n\
         callers:\n  kubernetes:\n    audience: other\n    serviceAccounts: [a/b, c/d]\n",
    )
    .unwrap();
    assert_eq!(config.ttl, Duration::from_mins(90));
    assert_eq!(config.metrics, Some("127.0.0.1:1".parse().unwrap()));
    assert_eq!(config.ca, CaPlace::CertManager("/etc/sluice/ca".into()));
    assert_eq!(config.pods, PodsConfig::Kubernetes);
    let agents = [("a", "b"), ("c", "d")].map(|(space, name)| (space.into(), name.into()));
    let audience = "other".to_owned();
    assert_eq!(config.callers, CallersConfig::Kubernetes { audience, agents: agents.into() });
}

#[test]
fn a_cluster_may_hold_all_of_it() {
    let config = parse(
        "kubeconfig: k\npods: kubernetes\ncallers: {kubernetes: {serviceAccounts: [a/b]}}\n\
         ca: {mode: secret, namespace: s, name: ca, publishRoots: {namespace: s, configMap: roots}}\n\
         policyStatus: {namespace: s, lease: l, rootNamespace: mesh}\n",
    )
    .unwrap();
    let object = |name: &str| ObjectName { namespace: "s".to_owned(), name: name.to_owned() };
    assert_eq!(config.ca, CaPlace::Secret(object("ca")));
    let new_root_delay = Duration::from_mins(2);
    let publish = PublishConfig { config_map: object("roots"), new_root_delay };
    assert_eq!(config.publish_roots, Some(publish));
    assert_eq!(config.kubeconfig, Some("/etc/sluice/k".into()));
    let status = PolicyStatusConfig { lease: object("l"), root_namespace: "mesh".to_owned() };
    assert_eq!(config.policy_status, Some(status));
}

#[test]
fn faults_are_named_with_line_and_field() {
    let rest = "callers: {tokens: t}\npods: {mesh: m}\n";
    for (text, expected) in [
        (format!("{rest}listen: localhost"), "controller.yaml:3: listen: \"localhost\""),
        (format!("{rest}listen: 15012"), "controller.yaml:3"),
        (format!("{rest}metrics: '15020'"), ":3: metrics: \"15020\" is not an address"),
        (format!("{rest}trustDomain: A"), ":3: trustDomain: \"A\""),
        (format!("{rest}ttl: 59s"), ":3: ttl: 59 s are too short"),
        (format!("{rest}ttl: 1 h"), ":3: ttl: \"1 h\" is not a duration"),
        (format!("{rest}ttl: +9h"), ":3: ttl:"),
        (format!("{rest}ttl: h"), ":3: ttl:"),
        (format!("{rest}ttl: ''"), ":3: ttl:"),
        (format!("{rest}ttl: 4294967296d"), ":3: ttl:"),
        (
            format!(
                "{rest}ca: {{mode: embedded, publishRoots: \
                 {{namespace: s, configMap: r, newRootDelay: soon}}}}"
            ),
            ":3: ca.publishRoots.newRootDelay: \"soon\" is not a duration",
        ),
        (format!("{rest}serverNames: []"), ":3: serverNames: needs"),
        (format!("{rest}ca: {{mode: pem}}"), ":3: ca.dir: mode pem needs"),
        (format!("{rest}ca: {{mode: secret}}"), ":3: ca: mode secret needs `namespace`"),
        (format!("{rest}ca: {{mode: secret, name: n}}"), ":3: ca: mode secret needs"),
        (format!("{rest}ca: {{mode: secret, dir: d}}"), ":3: ca.dir: mode secret has no"),
        (
            format!("{rest}ca: {{mode: pem, dir: d, namespace: a, name: b}}"),
            ":3: ca.name: mode pem",
        ),
        (format!("{rest}ca: {{mode: vault}}"), ":3: ca.mode: \"vault\""),
        (format!("{rest}listne: x"), "controller.yaml:3:1: unknown field"),
        ("callers: {}\npods: {mesh: m}".to_owned(), ":1: callers: choose one of"),
        ("callers: {tokens: t}\npods: {}".to_owned(), ":2: pods: choose one of"),
        ("callers: {tokens: t}\npods: cubernetes".to_owned(), ":2: pods: choose one of"),
        (
            "callers: {tokens: t}\npods: {mesh: m, kubernetes: {}}".to_owned(),
            ":2:17: unknown field",
        ),
        ("pods: {mesh: m}".to_owned(), "missing field"),
        (
            "pods: {mesh: m}\ncallers: {kubernetes: {serviceAccounts: []}}".to_owned(),
            ":2: callers.kubernetes.serviceAccounts: needs",
        ),
        (
            "pods: {mesh: m}\ncallers: {kubernetes: {serviceAccounts: [a]}}".to_owned(),
            "\"a\" is not a service account",
        ),
    ] {
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}\n{error}");
    }
}
