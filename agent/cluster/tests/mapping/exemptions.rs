//! What is kept out of the mesh.

use crate::world::{SHOP, World, pod};

const DATABASE: &str = "\
---
kind: Service
metadata: {namespace: shop, name: db}
spec: {clusterIPs: [10.96.0.5], selector: {app: db}, ports: [{name: sql, port: 5432}, {name: web, port: 80}]}
---
kind: EndpointSlice
metadata: {namespace: shop, name: db-1, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 15432}, {name: web, port: 8080}]
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, uid: db}}]
";

fn rule(namespace: &str, name: &str, host: &str, policy: &str) -> String {
    format!(
        "---\nkind: DestinationRule\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
         spec: {{host: {host}, trafficPolicy: {{{policy}}}}}\n"
    )
}

fn world(rules: &str) -> World {
    World::new(&(SHOP.to_owned() + &pod("db", "10.0.0.1", ["", "", ""]) + DATABASE + rules))
}

#[test]
fn a_rule_that_disables_tls_makes_destinations_direct() {
    let every = vec!["10.0.0.1:8080", "10.0.0.1:15432", "10.96.0.5:80", "10.96.0.5:5432"];
    let sql = vec!["10.0.0.1:15432", "10.96.0.5:5432"];
    let only_sql = "portLevelSettings: [{port: {number: 5432}, tls: {mode: SIMPLE}}]";
    let all_but_web = "tls: {mode: DISABLE}, portLevelSettings: [{port: {number: 80}}]";
    for (namespace, host, policy, expected) in [
        ("shop", "db", "tls: {mode: DISABLE}", &every),
        ("shop", "db.shop.svc.cluster.local", "tls: {mode: SIMPLE}", &every),
        ("istio-system", "db.shop.svc", "tls: {mode: DISABLE}", &every),
        ("shop", "db", only_sql, &sql),
        ("shop", "db", all_but_web, &sql),
        ("shop", "db", "tls: {mode: ISTIO_MUTUAL}", &vec![]),
    ] {
        let world = world(&rule(namespace, "r", host, policy));
        let direct: Vec<_> = world.direct().iter().map(ToString::to_string).collect();
        assert_eq!(&direct, expected, "{namespace} {host} {policy}: {:?}", world.findings());
        let said = world.findings();
        assert!(said.iter().all(|said| said.contains("is reached without the mesh")), "{said:?}");
    }
}

#[test]
fn what_is_wrong_with_a_rule_leaves_the_mesh_in_use() {
    for (namespace, host, policy, words) in [
        (
            "other",
            "db.shop.svc.cluster.local",
            "tls: {mode: DISABLE}",
            "only rules in the service's own namespace",
        ),
        ("shop", "db.shop", "tls: {mode: DISABLE}", "\"db.shop\" is no service here"),
        ("shop", "'*'", "tls: {mode: DISABLE}", "\"*\" is no service here"),
        ("shop", "none", "tls: {mode: DISABLE}", "\"none\" is no service here"),
        ("shop", "db", "tls: {mode: MUTUAL}", "TLS mode \"MUTUAL\""),
        ("shop", "db", "tls: {}", "TLS mode \"\""),
    ] {
        let world = world(&rule(namespace, "r", host, policy));
        assert!(world.direct().is_empty(), "{host} {policy}");
        let findings = world.findings();
        assert!(
            findings.len() == 1 && findings[0].contains(words),
            "{host} {policy}: {findings:?}"
        );
    }
    let selecting = rule("shop", "r", "db", "tls: {mode: DISABLE}")
        .replace("spec: {", "spec: {workloadSelector: {matchLabels: {a: b}}, ");
    assert!(world(&selecting).direct().is_empty());
}

#[test]
fn rules_that_disagree_leave_the_mesh_in_use() {
    let mut world = world(
        &(rule("shop", "a", "db", "tls: {mode: DISABLE}")
            + &rule("shop", "b", "db", "tls: {mode: ISTIO_MUTUAL}")),
    );
    assert!(world.direct().is_empty());
    assert!(world.findings().iter().any(|said| said.contains("disagree")));
    world.delete(&rule("shop", "b", "db", ""));
    assert_eq!(world.direct().len(), 4);
}

#[test]
fn annotations_exempt_what_they_list_and_nothing_for_what_is_wrong() {
    let world = World::new(
        &(SHOP.to_owned()
            + &pod(
                "a",
                "10.0.0.1",
                [
                    "annotations: {traffic.sidecar.istio.io/excludeInboundPorts: '9090,x', \
                 sluice.dev/exclude-outbound-ports: '5432'}",
                    "",
                    "",
                ],
            )),
    );
    let bypass = world.workload("a").unwrap().bypass.clone();
    assert_eq!((bypass.inbound_ports, bypass.outbound_ports), ([9090].into(), [5432].into()));
    assert_eq!(
        world.findings(),
        [
            "Pod shop/a: metadata.annotations[traffic.sidecar.istio.io/excludeInboundPorts]: \"x\" is not a \
          port from 1 to 65535, so it exempts nothing: correct or remove it"
        ]
    );
}
