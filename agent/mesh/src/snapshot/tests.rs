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
        name: name.into(),
        identity: account.identity(&domain()).unwrap(),
        account,
        labels: [("app".to_owned(), "web".to_owned())].into(),
        addresses: vec![IpAddr::from([10, 0, 0, last]), format!("fd00::{last}").parse().unwrap()],
        node: "a".into(),
        in_mesh: true,
        netns: None,
        ready: true,
    }
}

fn service() -> Service {
    Service {
        name: "web".into(),
        namespace: "shop".into(),
        addresses: vec!["10.96.0.1".parse().unwrap(), "fd96::1".parse().unwrap()],
        ports: vec![ServicePort { port: 80, target_port: 8080 }],
        selector: [("app".to_owned(), "web".to_owned())].into(),
    }
}

fn chosen(snapshot: &Snapshot, target: &str, turn: usize) -> Option<SocketAddr> {
    match snapshot.resolve(target.parse().unwrap(), turn) {
        Destination::Member(_, address) => Some(address),
        Destination::NoEndpoint(_) | Destination::Unknown => None,
    }
}

#[test]
fn a_service_spreads_over_its_ready_endpoints_of_the_same_family() {
    let mut third = workload("c", 3);
    third.ready = false;
    let builder = SnapshotBuilder {
        workloads: vec![workload("a", 1), workload("b", 2), third],
        services: vec![service()],
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
    let builder = SnapshotBuilder { services: vec![service()], ..SnapshotBuilder::default() };
    let snapshot = builder.build(domain()).unwrap();
    let destination = snapshot.resolve("10.96.0.1:80".parse().unwrap(), 0);
    assert!(matches!(destination, Destination::NoEndpoint(_)));
    assert_eq!(snapshot.protected_addresses().count(), 0);
}

#[test]
fn pods_and_services_of_the_mesh_are_protected() {
    let mut outside = workload("c", 3);
    outside.in_mesh = false;
    let builder = SnapshotBuilder {
        workloads: vec![workload("a", 1), outside],
        services: vec![service()],
        ..SnapshotBuilder::default()
    };
    let snapshot = builder.build(domain()).unwrap();
    let protected: BTreeSet<_> = snapshot.protected_addresses().collect();
    let expected = ["10.0.0.1", "fd00::1", "10.96.0.1", "fd96::1"];
    assert_eq!(protected, expected.iter().map(|text| text.parse().unwrap()).collect());
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
        services: vec![taken],
        ..SnapshotBuilder::default()
    };
    assert!(matches!(builder.build(domain()), Err(BuildError::ServiceClash { .. })));
}
