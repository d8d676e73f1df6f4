//! Services and their endpoints.

use crate::world::{SHOP, World, client, pod};

/// Returns a service `web` with two ports, one of which has a named target and one is UDP, and the given fields of its
/// spec.
fn service(spec: &str) -> String {
    format!(
        "---\nkind: Service\nmetadata: {{namespace: shop, name: web, creationTimestamp: '2026-01-01T00:00:00Z'}}\n\
         spec: {{clusterIPs: [10.96.0.1, 'fd96::1'], selector: {{app: web}}, \
         ports: [{{name: http, port: 80, targetPort: web}}, {{name: dns, port: 53, protocol: UDP}}], {spec}}}\n"
    )
}

fn slice(name: &str, port: u16, endpoints: &str) -> String {
    let family = if name.ends_with('6') { "IPv6" } else { "IPv4" };
    format!(
        "---\nkind: EndpointSlice\nmetadata: {{namespace: shop, name: {name}, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: {family}\nports: [{{name: http, port: {port}}}]\nendpoints: [{endpoints}]\n"
    )
}

fn endpoint(name: &str, address: &str, node: &str, zone: &str) -> String {
    format!(
        "{{addresses: ['{address}'], conditions: {{ready: true}}, nodeName: {node}, zone: {zone}, \
         targetRef: {{kind: Pod, uid: {name}}}}},"
    )
}

/// Returns three pods: on this node, in its zone, and in another zone.
fn pods() -> String {
    SHOP.to_owned()
        + &pod("here", "10.0.0.1", ["", "", ""])
        + &pod("near", "10.0.0.2", ["", "", ""]).replace("nodeName: a", "nodeName: b")
        + &pod("far", "10.0.0.3", ["", "", ""]).replace("nodeName: a", "nodeName: c")
}

fn endpoints() -> String {
    endpoint("here", "10.0.0.1", "a", "west")
        + &endpoint("near", "10.0.0.2", "b", "west")
        + &endpoint("far", "10.0.0.3", "c", "east")
}

#[test]
fn an_address_leads_to_ready_endpoints_as_the_service_says() {
    let slices = slice("web-1", 8080, &endpoints());
    for (spec, expected) in [
        ("", vec!["far 10.0.0.3:8080", "here 10.0.0.1:8080", "near 10.0.0.2:8080"]),
        ("trafficDistribution: PreferClose", vec!["here 10.0.0.1:8080", "near 10.0.0.2:8080"]),
        ("trafficDistribution: PreferSameZone", vec!["here 10.0.0.1:8080", "near 10.0.0.2:8080"]),
        ("trafficDistribution: PreferSameNode", vec!["here 10.0.0.1:8080"]),
        ("internalTrafficPolicy: Local", vec!["here 10.0.0.1:8080"]),
    ] {
        let world = World::new(&(pods() + &service(spec) + &slices));
        assert_eq!(world.reached("10.96.0.1:80"), expected, "{spec}");
        assert!(world.protects("10.96.0.1"));
    }
    let world = World::new(&(pods() + &service("sessionAffinity: ClientIP") + &slices));
    assert_eq!(world.reached("10.96.0.1:80").len(), 1);
}

#[test]
fn no_endpoint_is_said_with_its_reason() {
    let mut world = World::new(&(pods() + &service("")));
    // The namespace belongs to the mesh: clients are refused by the mesh, not sent around it.
    assert!(world.protects("10.96.0.1"));
    assert_eq!(
        world.reached("10.96.0.1:80"),
        ["web has no ready endpoint for this port and address family"]
    );
    world.apply(&slice("web-1", 8080, &endpoint("far", "10.0.0.3", "c", "east")));
    assert_eq!(world.reached("10.96.0.1:80"), ["far 10.0.0.3:8080"]);
    assert_eq!(world.reached("10.96.0.1:81"), ["web does not offer port 81"]);
    assert_eq!(world.reached("10.96.0.1:53"), ["web does not offer port 53"]);
    world.apply(&service("internalTrafficPolicy: Local"));
    assert_eq!(
        world.reached("10.96.0.1:80"),
        ["web has no ready endpoint on this node, and its internalTrafficPolicy is Local"]
    );
}

#[test]
fn readiness_is_the_slices_word_unless_the_service_takes_all() {
    let unready = endpoints().replacen("{ready: true}", "{ready: false, serving: false}", 2);
    let mut world = World::new(&(pods() + &service("") + &slice("web-1", 8080, &unready)));
    assert_eq!(world.reached("10.96.0.1:80"), ["far 10.0.0.3:8080"]);
    world.apply(&service("publishNotReadyAddresses: true"));
    assert_eq!(world.reached("10.96.0.1:80").len(), 3);
    // While no endpoint is ready, one that terminates but still serves is used.
    let ending = endpoints().replacen("{ready: true}", "{ready: false, serving: true}", 1);
    let ending = ending.replace("{ready: true}", "{ready: false, serving: false}");
    world.apply(&(service("") + &slice("web-1", 8080, &ending)));
    assert_eq!(world.reached("10.96.0.1:80"), ["here 10.0.0.1:8080"]);
}

#[test]
fn named_ports_differ_by_slice_and_families_by_address() {
    let mut dual = pod("far", "10.0.0.3", ["", "", ""]);
    dual = dual.replace("[{ip: '10.0.0.3'}]", "[{ip: 10.0.0.3}, {ip: 'fd00::3'}]");
    let world = World::new(
        &(pods()
            + &dual
            + &service("")
            + &slice("web-1", 8080, &endpoint("here", "10.0.0.1", "a", "west"))
            + &slice("web-2", 9090, &endpoint("far", "10.0.0.3", "c", "east"))
            + &slice("web-6", 9090, &endpoint("far", "fd00::3", "c", "east"))),
    );
    assert_eq!(world.reached("10.96.0.1:80"), ["far 10.0.0.3:9090", "here 10.0.0.1:8080"]);
    assert_eq!(world.reached("[fd96::1]:80"), ["far [fd00::3]:9090"]);
}

#[test]
fn endpoints_that_are_no_pods_stay_outside() {
    let host = pod("host", "192.168.0.1", ["", "hostNetwork: true", ""]);
    let manual = "{addresses: [192.0.2.1]},";
    let listed = endpoint("host", "192.168.0.1", "a", "west") + manual;
    // The slice comes before the pod that it names.
    let mut world = World::new(&(service("") + &slice("web-1", 8080, &listed)));
    assert_eq!(world.reached("10.96.0.1:80"), ["outside 192.0.2.1:8080"]);
    world.apply(&host);
    assert_eq!(
        world.reached("10.96.0.1:80"),
        ["outside 192.0.2.1:8080", "outside 192.168.0.1:8080"]
    );
    assert!(!world.protects("10.96.0.1") && !world.protects("192.168.0.1"));
}

#[test]
fn a_headless_service_has_no_address_and_its_pods_keep_theirs() {
    let headless = service("").replace("[10.96.0.1, 'fd96::1']", "[None]");
    let world = World::new(&(pods() + &headless + &slice("web-1", 8080, &endpoints())));
    assert_eq!(world.resolve("10.0.0.1:8080", client(), 0), "here 10.0.0.1:8080");
    assert_eq!(world.snapshot().services()[0].addresses, Vec::<std::net::IpAddr>::new());
}

#[test]
fn load_balancers_count_and_external_addresses_do_not() {
    let balanced = service("externalIPs: [203.0.113.9]")
        + "status: {loadBalancer: {ingress: [{ip: 203.0.113.1}, {ip: 203.0.113.2, ipMode: Proxy}, {hostname: x}]}}\n";
    let world = World::new(&(pods() + &balanced + &slice("web-1", 8080, &endpoints())));
    assert!(world.protects("203.0.113.1"));
    assert!(!world.protects("203.0.113.2") && !world.protects("203.0.113.9"));
}

/// What a load balancer has written on the service before it.
fn balanced(address: &str) -> String {
    format!("status: {{loadBalancer: {{ingress: [{{ip: {address}}}]}}}}\n")
}

#[test]
fn a_load_balancers_address_is_the_services_on_its_own_ports_only() {
    // As k3s' ServiceLB does: the address is the node's, where the kubelet is too.
    let service = service("") + &balanced("192.0.2.7");
    let world = World::new(&(pods() + &service + &slice("web-1", 8080, &endpoints())));
    assert!(world.protects("192.0.2.7"));
    assert_eq!(world.resolve("192.0.2.7:80", client(), 0), "here 10.0.0.1:8080");
    assert_eq!(world.reached("192.0.2.7:10250"), ["unknown"]);
    assert_eq!(world.reached("192.0.2.7:53"), ["unknown"], "UDP only");
    let at = |port: u16| world.snapshot().service_at(([192, 0, 2, 7], port).into()).is_some();
    assert!(at(80) && !at(10250));
}

#[test]
fn two_services_share_a_load_balancers_address_by_ports() {
    // As MetalLB's allow-shared-ip does.
    let shared = |name: &str, port: &str, month: &str| {
        let service = service("").replace("name: web,", &format!("name: {name},"));
        let service = service.replace("[10.96.0.1, 'fd96::1']", "[]").replace("-01-01T", month);
        service.replace("port: 80,", port) + &balanced("192.0.2.7")
    };
    let both = shared("old", "port: 80,", "-01-01T") + &shared("new", "port: 81,", "-02-01T");
    let mut world = World::new(&(pods() + &both));
    let owner = |world: &World, port: u16| {
        let service = world.snapshot().service_at(([192, 0, 2, 7], port).into())?;
        Some(service.name.clone())
    };
    assert_eq!([80, 81].map(|port| owner(&world, port).unwrap()), ["old", "new"]);
    assert!(world.findings().is_empty(), "{:?}", world.findings());
    world.apply(&shared("thief", "port: 80,", "-03-01T"));
    assert_eq!([80, 81].map(|port| owner(&world, port).unwrap()), ["thief", "new"]);
    let said = world.findings().join("\n");
    let expected =
        "Service shop/old: status.loadBalancer.ingress: 192.0.2.7:80 belongs to service shop/thief";
    assert!(said.starts_with(expected), "{said}");
}

#[test]
fn where_nothing_of_the_node_is_ready_what_still_serves_there_takes_its_clients() {
    let ending = endpoints().replacen("{ready: true}", "{ready: false, serving: true}", 1);
    let slice = slice("web-1", 8080, &ending);
    let mut world = World::new(&(pods() + &service("internalTrafficPolicy: Local") + &slice));
    assert_eq!(world.reached("10.96.0.1:80"), ["here 10.0.0.1:8080"]);
    world.apply(&service(""));
    assert_eq!(world.reached("10.96.0.1:80"), ["far 10.0.0.3:8080", "near 10.0.0.2:8080"]);
}

#[test]
fn of_two_services_with_one_address_the_newer_has_it_and_pods_come_first() {
    let newer = service("").replace("name: web,", "name: new,").replace("01T", "02T");
    let thief = service("")
        .replace("name: web,", "name: thief,")
        .replace("10.96.0.1", "10.0.0.1")
        .replace("fd96::1", "fd96::2");
    let mut world = World::new(&(pods() + &service("") + &newer + &thief));
    assert_eq!(world.snapshot().service_at("10.96.0.1:80".parse().unwrap()).unwrap().name, "new");
    assert_eq!(world.resolve("10.0.0.1:80", client(), 0), "here 10.0.0.1:80");
    let findings = world.findings();
    assert!(
        findings.iter().any(|said| said
            .starts_with("Service shop/thief: spec.clusterIPs: 10.0.0.1 belongs to pod shop/here")),
        "{findings:?}"
    );
    world.delete(&service(""));
    assert_eq!(world.findings().len(), 1);
}
