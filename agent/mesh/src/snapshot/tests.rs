//! What a snapshot answers, and what it refuses to be built from.

use std::{collections::BTreeSet, net::Ipv4Addr};

use sluice_spiffe::WorkloadName;

use super::*;
use crate::ServicePort;

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn workload(name: &str, last: u8) -> Workload {
    let account = WorkloadName { namespace: "shop".into(), service_account: name.into() };
    Workload {
        uid: WorkloadUid(format!("shop/{name}").into()),
        static_uid: None,
        name: name.into(),
        identity: account.identity(&domain()).unwrap(),
        account,
        labels: Arc::new([("app".to_owned(), "web".to_owned())].into()),
        addresses: vec![IpAddr::from([10, 0, 0, last]), format!("fd00::{last}").parse().unwrap()],
        node: "a".into(),
        in_mesh: true,
        netns: None,
        ready: true,
        zone: None,
        bypass: Bypass::default(),
        probe_ports: BTreeSet::new(),
    }
}

fn service() -> Service {
    Service {
        name: "web".into(),
        namespace: "shop".into(),
        addresses: vec!["10.96.0.1".parse().unwrap(), "fd96::1".parse().unwrap()],
        ports: vec![ServicePort { port: 80, target_port: 8080 }],
        endpoints: Endpoints::Selected([("app".to_owned(), "web".to_owned())].into()),
        ..Service::default()
    }
}

/// Makes the same service with the endpoints that a source lists.
fn listing(endpoints: Vec<Endpoint>) -> Service {
    Service { endpoints: Endpoints::Listed(endpoints), ..service() }
}

fn endpoint(address: &str, workload: Option<&str>) -> Endpoint {
    Endpoint {
        address: address.parse().unwrap(),
        workload: workload.map(|name| WorkloadUid(format!("shop/{name}").into())),
        node: Some("a".into()),
        zone: None,
        ready: true,
        serving: true,
        ports: [ServicePort { port: 80, target_port: 8080 }].into(),
    }
}

fn client() -> Client<'static> {
    Client { address: "10.0.0.9".parse().unwrap(), node: "a", zone: None }
}

fn resolve(snapshot: &Snapshot, target: &str) -> Destination {
    snapshot.resolve(target.parse().unwrap(), &client(), 0)
}

fn chosen(snapshot: &Snapshot, target: &str, turn: usize) -> Option<SocketAddr> {
    match snapshot.resolve(target.parse().unwrap(), &client(), turn) {
        Destination::Member(_, address) => Some(address),
        Destination::Outside(_)
        | Destination::NoEndpoint(..)
        | Destination::Disputed(_)
        | Destination::Unknown => None,
    }
}

#[test]
fn a_service_spreads_over_its_ready_endpoints_of_the_same_family() {
    let mut third = workload("c", 3);
    third.ready = false;
    let builder = SnapshotBuilder {
        workloads: vec![workload("a", 1), workload("b", 2), third],
        services: vec![service().into()],
        ..SnapshotBuilder::default()
    };
    let snapshot = builder.build(domain()).unwrap();
    let v4: BTreeSet<_> =
        (0..4).filter_map(|turn| chosen(&snapshot, "10.96.0.1:80", turn)).collect();
    assert_eq!(v4, ["10.0.0.1:8080".parse().unwrap(), "10.0.0.2:8080".parse().unwrap()].into());
    assert_eq!(chosen(&snapshot, "[fd96::1]:80", 0), Some("[fd00::1]:8080".parse().unwrap()));
    assert_eq!(chosen(&snapshot, "10.96.0.1:81", 0), None);
}

#[test]
fn a_service_without_endpoints_is_not_unknown() {
    let builder =
        SnapshotBuilder { services: vec![service().into()], ..SnapshotBuilder::default() };
    let snapshot = builder.build(domain()).unwrap();
    let destination = resolve(&snapshot, "10.96.0.1:80");
    assert!(matches!(destination, Destination::NoEndpoint(_, Lack::Ready)));
    assert_eq!(snapshot.protected_addresses().count(), 0);
}

#[test]
fn pods_and_services_of_the_mesh_are_protected() {
    let mut outside = workload("c", 3);
    outside.in_mesh = false;
    let builder = SnapshotBuilder {
        workloads: vec![workload("a", 1), outside],
        services: vec![service().into()],
        ..SnapshotBuilder::default()
    };
    let snapshot = builder.build(domain()).unwrap();
    let protected: BTreeSet<_> = snapshot.protected_addresses().collect();
    let expected = ["10.0.0.1", "fd00::1", "10.96.0.1", "fd96::1"];
    assert_eq!(protected, expected.iter().map(|text| text.parse().unwrap()).collect());
}

#[test]
fn a_load_balancers_address_is_protected_whole_and_the_services_by_port() {
    let at = "192.0.2.7:80".parse().unwrap();
    let mut exempt = workload("b", 2);
    exempt.bypass.outbound_networks = vec!["192.0.2.7/32".parse().unwrap()];
    let endpoint = endpoint("10.0.0.1", Some("a"));
    let builder = |services| SnapshotBuilder {
        workloads: vec![workload("a", 1), exempt.clone()],
        services,
        ..SnapshotBuilder::default()
    };
    let balanced = Service { balanced: vec![at], ..listing(vec![endpoint]) };
    let snapshot = builder(vec![balanced.clone().into()]).build(domain()).unwrap();
    assert!(snapshot.protected_addresses().any(|protected| protected == at.ip()));
    assert_eq!(chosen(&snapshot, "192.0.2.7:80", 0), "10.0.0.1:8080".parse().ok());
    assert!(matches!(resolve(&snapshot, "192.0.2.7:10250"), Destination::Unknown));
    assert!(matches!(resolve(&snapshot, "10.96.0.1:10250"), Destination::NoEndpoint(..)));
    // Who leaves the load balancer's address alone comes in plaintext.
    let local = "10.0.0.1:8080".parse().unwrap();
    assert!(!snapshot.expects_mesh("10.0.0.2".parse().unwrap(), local));
    let other = Service { addresses: vec!["10.96.0.2".parse().unwrap()], ..balanced.clone() };
    let clash = builder(vec![balanced.into(), other.into()]).build(domain()).unwrap_err();
    assert!(matches!(clash, BuildError::ServiceClash { address, .. } if address == at.ip()));
}

#[test]
fn an_address_claimed_twice_is_refused() {
    let builder = SnapshotBuilder {
        workloads: vec![workload("a", 1), workload("b", 1)],
        ..SnapshotBuilder::default()
    };
    let error = builder.build(domain()).unwrap_err();
    assert!(
        matches!(error, BuildError::AddressClash { address, .. } if address == Ipv4Addr::new(10, 0, 0, 1))
    );
}

#[test]
fn a_service_may_not_claim_a_pods_address() {
    let mut taken = service();
    taken.addresses = vec!["10.0.0.1".parse().unwrap()];
    let builder = SnapshotBuilder {
        workloads: vec![workload("a", 1)],
        services: vec![taken.into()],
        ..SnapshotBuilder::default()
    };
    assert!(matches!(builder.build(domain()), Err(BuildError::ServiceClash { .. })));
}

#[test]
fn a_listed_endpoint_is_followed_only_to_the_pod_that_it_names() {
    let builder = SnapshotBuilder {
        workloads: vec![workload("a", 1), workload("b", 2)],
        services: vec![
            listing(vec![
                // The slice is late: another pod now has the address, or the pod is not known.
                endpoint("10.0.0.1", Some("b")),
                endpoint("10.0.0.7", Some("gone")),
                endpoint("10.0.0.2", Some("b")),
            ])
            .into(),
        ],
        ..SnapshotBuilder::default()
    };
    let snapshot = builder.build(domain()).unwrap();
    for turn in 0..4 {
        assert_eq!(chosen(&snapshot, "10.96.0.1:80", turn), "10.0.0.2:8080".parse().ok());
    }
}

#[test]
fn an_endpoint_that_is_no_pod_is_outside_and_the_service_too() {
    let builder = SnapshotBuilder {
        services: vec![listing(vec![endpoint("192.0.2.1", None)]).into()],
        ..SnapshotBuilder::default()
    };
    let snapshot = builder.build(domain()).unwrap();
    let outside = "192.0.2.1:8080".parse().unwrap();
    assert!(
        matches!(resolve(&snapshot, "10.96.0.1:80"), Destination::Outside(at) if at == outside)
    );
    assert_eq!(snapshot.protected_addresses().count(), 0);
}

#[test]
fn a_service_of_the_mesh_stays_protected_without_endpoints() {
    let service = Service { in_mesh: true, ..listing(Vec::new()) };
    let builder = SnapshotBuilder { services: vec![service.into()], ..SnapshotBuilder::default() };
    let snapshot = builder.build(domain()).unwrap();
    assert_eq!(snapshot.protected_addresses().count(), 2);
}

#[test]
fn a_disputed_address_is_protected_and_leads_nowhere() {
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    let builder = SnapshotBuilder {
        workloads: vec![workload("a", 1)],
        services: vec![listing(vec![endpoint("10.0.0.3", None)]).into()],
        disputed: [(address, "two pods claim it".into())].into(),
        ..SnapshotBuilder::default()
    };
    let snapshot = builder.build(domain()).unwrap();
    assert!(matches!(resolve(&snapshot, "10.0.0.3:80"), Destination::Disputed(_)));
    assert!(matches!(resolve(&snapshot, "10.96.0.1:80"), Destination::NoEndpoint(..)));
    assert!(snapshot.protected_addresses().any(|protected| protected == address));
    assert!(snapshot.expects_mesh(address, "10.0.0.1:80".parse().unwrap()));
}

#[test]
fn plaintext_is_expected_from_the_mesh_only_where_something_exempts_it() {
    let mut exempt = workload("b", 2);
    exempt.bypass.outbound_ports = [80].into();
    let mut outside = workload("c", 3);
    outside.in_mesh = false;
    let builder = SnapshotBuilder {
        workloads: vec![workload("a", 1), exempt, outside],
        services: vec![listing(vec![endpoint("10.0.0.1", Some("a"))]).into()],
        direct: ["10.0.0.1:5432".parse().unwrap()].into(),
        ..SnapshotBuilder::default()
    };
    let snapshot = builder.build(domain()).unwrap();
    for (client, local, expected) in [
        ("10.0.0.1", "10.0.0.1:9000", true),
        ("10.0.0.1", "10.0.0.1:5432", false),
        ("10.0.0.2", "10.0.0.1:9000", true),
        ("10.0.0.2", "10.0.0.1:80", false),
        // Port 80 of the service leads to 8080 of this pod.
        ("10.0.0.2", "10.0.0.1:8080", false),
        ("10.0.0.2", "10.0.0.3:8080", true),
        ("10.0.0.3", "10.0.0.1:9000", false),
        ("192.0.2.1", "10.0.0.1:9000", false),
    ] {
        let said = snapshot.expects_mesh(client.parse().unwrap(), local.parse().unwrap());
        assert_eq!(said, expected, "{client} to {local}");
    }
}

#[test]
fn a_certificate_says_that_an_address_has_changed_hands() {
    let builder =
        SnapshotBuilder { workloads: vec![workload("a", 1)], ..SnapshotBuilder::default() };
    let snapshot = builder.build(domain()).unwrap();
    let address = "10.0.0.1".parse().unwrap();
    let known = |identity: Option<&SpiffeId>| snapshot.workload_of(address, identity).is_some();
    assert!(known(None));
    assert!(known(Some(&workload("a", 9).identity)));
    assert!(!known(Some(&workload("b", 1).identity)));
}
