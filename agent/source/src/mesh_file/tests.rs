//! What the file may say, and where its faults are.

use super::*;

const GOOD: &str = "\
namespaces: [{ name: shop, labels: { istio.io/dataplane-mode: ambient } }]
pods:
- { namespace: shop, name: web, serviceAccount: web, labels: {app: web}, addresses: [10.1.0.2, 'fd00:1::2'], node: node-a, netns: /run/netns/x, ready: false }
- { namespace: shop, name: out.0, labels: {istio.io/dataplane-mode: none}, addresses: ['::ffff:10.1.0.3'], node: node-b }
services:
- { namespace: shop, name: web, addresses: [10.96.0.10], ports: [{port: 80, targetPort: 8080}, {port: 81}], selector: {app: web} }
";

fn parse_text(text: &str) -> Result<MeshState, FileError> {
    parse(Path::new("mesh.yaml"), text, &"cluster.local".parse().unwrap())
}

#[test]
fn a_whole_mesh_is_read() {
    let MeshState { workloads, services } = parse_text(GOOD).unwrap();
    let (web, out) = (&workloads[0], &workloads[1]);
    assert_eq!(web.uid.to_string(), "shop/web");
    assert_eq!(web.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!((web.in_mesh, web.ready, web.node.as_str()), (true, false, "node-a"));
    assert_eq!(web.netns.as_deref(), Some(Path::new("/run/netns/x")));
    assert_eq!(web.addresses.len(), 2);
    // The pod's own label wins, its account defaults, its address is IPv4 however it was written.
    assert_eq!((out.in_mesh, out.ready), (false, true));
    assert_eq!(out.account.service_account, "default");
    assert_eq!(out.addresses, ["10.1.0.3".parse::<IpAddr>().unwrap()]);
    assert_eq!(services[0].target_port(80), Some(8080));
    assert_eq!(services[0].target_port(81), Some(81));
}

#[test]
fn an_empty_mesh_is_a_mesh() {
    for text in ["{}", "pods: []", "pods:\nservices:\n"] {
        assert_eq!(parse_text(text).unwrap(), MeshState::default(), "{text}");
    }
}

#[test]
fn faults_are_named_by_line_and_field() {
    for (from, to, words) in [
        ("pods:", "pod:", "mesh.yaml:2:1: unknown field `pod`"),
        ("ready: false", "redy: false", "mesh.yaml:3:"),
        ("fd00:1::2", "fd00:1::x", "mesh.yaml:3:"),
        (
            "name: web, serviceAccount",
            "name: Web, serviceAccount",
            "mesh.yaml:3: pods[0].name: \"Web\" is not a DNS",
        ),
        (
            "serviceAccount: web",
            "serviceAccount: a/b",
            "mesh.yaml:3: pods[0].serviceAccount: \"a/b\"",
        ),
        ("node: node-a", "node: ''", "mesh.yaml:3: pods[0].node: \"\""),
        ("/run/netns/x", "netns/x", "mesh.yaml:3: pods[0].netns: netns/x is relative"),
        (
            "name: out.0",
            "name: web",
            "mesh.yaml:4: pods[1].name: pod shop/web is already listed on line 3",
        ),
        (
            "10.1.0.3",
            "10.1.0.2",
            "mesh.yaml:4: pods[1].addresses: 10.1.0.2 already belongs to pod shop/web (line 3)",
        ),
        (
            "10.96.0.10",
            "10.1.0.3",
            "mesh.yaml:6: services[0].addresses: 10.1.0.3 already belongs to pod shop/out.0",
        ),
        (
            "10.96.0.10",
            "127.0.0.1",
            "mesh.yaml:6: services[0].addresses: 127.0.0.1 cannot be reached",
        ),
        ("[10.96.0.10]", "[]", "mesh.yaml:6: services[0].addresses: empty"),
        (
            "port: 81",
            "port: 80",
            "mesh.yaml:6: services[0].ports[1].port: port 80 is already listed on line 6",
        ),
        (
            "targetPort: 8080",
            "targetPort: 0",
            "mesh.yaml:6: services[0].ports[0].targetPort: 0 is not a port",
        ),
        ("port: 81", "port: 65536", "mesh.yaml:6:"),
        (
            "namespace: shop, name: web, addr",
            "namespace: a.b, name: web, addr",
            "mesh.yaml:6: services[0].namespace",
        ),
    ] {
        let text = GOOD.replacen(from, to, 1);
        assert_ne!(text, GOOD, "{from}");
        let said = parse_text(&text).unwrap_err().to_string();
        assert!(said.starts_with(words), "{to}: {said}");
    }
    assert!(parse_text("").is_err(), "an empty file is not an empty mesh");
}

#[test]
fn a_mesh_may_be_large() {
    use std::fmt::Write;

    let mut text = "pods:\n".to_owned();
    for number in 0..20_000u32 {
        let address = IpAddr::from((0x0a00_0001 + number).to_be_bytes());
        let pod = format!(
            "name: p{number}, serviceAccount: a, labels: {{app: b}}, node: n, netns: /n/{number}"
        );
        writeln!(text, "- {{namespace: shop, {pod}, addresses: [{address}]}}").unwrap();
    }
    let started = std::time::Instant::now();
    assert_eq!(parse_text(&text).unwrap().workloads.len(), 20_000);
    println!("20,000 pods in {:?}", started.elapsed());
}
