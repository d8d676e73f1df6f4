//! Every mode with its fields, and faults by line and field.

use super::*;
use crate::AgentConfig;

fn parse(ca: &str) -> Result<AgentConfig, FileError> {
    let text = format!("node: n\nmesh: m\nca: {ca}\n");
    AgentConfig::parse(Path::new("agent.yaml"), Path::new("/etc/sluice"), &text, None)
}

fn said(ca: &str) -> String {
    parse(ca).unwrap_err().to_string()
}

#[test]
fn an_istio_ca_needs_an_address_and_a_root() {
    let config = parse(
        "{mode: istio, address: 'https://istiod.istio-system.svc:15012', rootCert: root.pem}",
    )
    .unwrap();
    let expected = IstioConfig {
        address: "https://istiod.istio-system.svc:15012".to_owned(),
        server_name: None,
        root_cert: "/etc/sluice/root.pem".into(),
        token: DEFAULT_TOKEN.into(),
        cluster_id: "Kubernetes".to_owned(),
        impersonate: true,
        roots_from_ca: false,
    };
    assert_eq!((config.ca, config.certificate_ttl), (CaConfig::Istio(expected), None));
}

#[test]
fn an_istio_ca_with_everything() {
    let config = parse(
        "{mode: istio, address: 'https://10.0.0.1:15012', serverName: istiod.istio-system.svc, \
         rootCert: /r, token: t, clusterId: east, ttl: 1h30m, impersonate: false, rootsFromCa: true}",
    )
    .unwrap();
    let expected = IstioConfig {
        address: "https://10.0.0.1:15012".to_owned(),
        server_name: Some("istiod.istio-system.svc".to_owned()),
        root_cert: "/r".into(),
        token: "/etc/sluice/t".into(),
        cluster_id: "east".to_owned(),
        impersonate: false,
        roots_from_ca: true,
    };
    let ttl = Some(Duration::from_mins(90));
    assert_eq!((config.ca, config.certificate_ttl), (CaConfig::Istio(expected), ttl));
}

#[test]
fn spire_is_a_socket() {
    let config = parse("{mode: spire, socket: /run/spire/admin.sock}").unwrap();
    assert_eq!(config.ca, CaConfig::Spire { socket: "/run/spire/admin.sock".into() });
}

#[test]
fn faults_are_named_by_line_and_field() {
    let istio = "mode: istio, rootCert: r, address: 'https://a:1'";
    let long = format!("{{mode: spire, socket: /{}}}", "s".repeat(107));
    for (ca, words) in [
        ("{mode: vault}", "ca.mode: \"vault\" is not a mode: embedded, pem, istio and spire are"),
        ("{mode: spire}", "ca.socket: missing: ca.mode spire needs socket"),
        ("{mode: spire, socket: /s, ttl: 1h}", "ca.ttl: ca.mode spire has no such field"),
        ("{mode: istio, rootCert: r}", "ca.address: missing: ca.mode istio needs address and"),
        ("{mode: istio, address: 'https://a'}", "ca.rootCert: missing"),
        ("{mode: istio, rootCert: r, address: 'http://a:1'}", "ca.address: \"http://a:1\" is not"),
        (&format!("{{{istio}, key: k}}"), "ca.key: ca.mode istio has no such field"),
        (&format!("{{{istio}, ttl: 59s}}"), "ca.ttl: \"59s\" is not a lifetime"),
        (&format!("{{{istio}, ttl: 1d}}"), "ca.ttl: \"1d\" is not a lifetime"),
        (&format!("{{{istio}, ttl: 9999h}}"), "ca.ttl: \"9999h\" is not a lifetime"),
        (&format!("{{{istio}, clusterId: 'a b'}}"), "ca.clusterId: \"a b\""),
        (&format!("{{{istio}, serverName: ''}}"), "ca.serverName: \"\""),
        ("{mode: embedded, address: 'https://a'}", "ca.address: ca.mode embedded has no"),
        (&long, "ca.socket: /sss"),
    ] {
        let said = said(ca);
        let expected = format!("agent.yaml:3: {words}");
        assert!(said.starts_with(&expected), "{ca}: {said}");
    }
    assert!(said(&format!("{{{istio}, impersonate: perhaps}}")).contains("agent.yaml:3:"));
}

#[test]
fn durations_are_hours_minutes_and_seconds() {
    let seconds = |text| duration(text).map(|duration| duration.as_secs());
    assert_eq!(seconds("90s"), Some(90));
    assert_eq!(seconds("1h1m1s"), Some(3661));
    for wrong in
        ["", "1", "h", "-1h", "1.5h", "1 h", "99999999999999999999s", "9999999999999999999h"]
    {
        assert_eq!(seconds(wrong), None, "{wrong}");
    }
}

#[test]
fn addresses_are_a_host_and_a_port() {
    for good in ["https://a", "https://a.b-c:15012", "https://[fd00::1]:443", "https://10.0.0.1/"] {
        assert!(is_https(good), "{good}");
    }
    for wrong in [
        "a:1",
        "https://",
        "https://:1",
        "https://a:0",
        "https://a:x",
        "https://a/b",
        "https://u@a:1",
        "https://[fd00::1",
        "https://a b",
        "https://[x]:1",
        "HTTPS://a",
        "https://a:70000",
    ] {
        assert!(!is_https(wrong), "{wrong}");
    }
}
