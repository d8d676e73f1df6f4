//! Spreading, nearness and affinity.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::*;
use crate::ServicePort;

fn endpoint(last: u8, node: &str, zone: &str) -> Endpoint {
    Endpoint {
        address: IpAddr::from([10, 0, 0, last]),
        workload: None,
        node: Some(node.into()),
        zone: Some(zone.into()),
        ready: true,
        serving: true,
        ports: [ServicePort { port: 80, target_port: 8080 }].into(),
    }
}

fn service(routing: Routing) -> Service {
    let ports = vec![ServicePort { port: 80, target_port: 8080 }];
    Service { ports, routing, ..Service::default() }
}

fn client(last: u8) -> Client<'static> {
    Client { address: IpAddr::from([10, 1, 0, last]), node: "a", zone: Some("west") }
}

fn chosen(
    endpoints: &[Endpoint],
    routing: Routing,
    client: &Client<'_>,
    turn: usize,
) -> Result<IpAddr, Lack> {
    let target = "10.96.0.1:80".parse().unwrap();
    choose(&service(routing), endpoints, target, client, turn, |_| true).map(|found| found.address)
}

fn last(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(_) => 0,
    }
}

/// Returns the endpoints that any turn leads to, sorted.
fn reached(endpoints: &[Endpoint], routing: Routing) -> Vec<u8> {
    let mut all: Vec<u8> = (0..12)
        .filter_map(|turn| chosen(endpoints, routing, &client(1), turn).ok())
        .map(last)
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

#[test]
fn the_near_ones_are_taken_while_one_is_ready() {
    let all = [endpoint(1, "a", "west"), endpoint(2, "b", "west"), endpoint(3, "c", "east")];
    let far = [endpoint(3, "c", "east"), endpoint(4, "d", "east")];
    let prefer = |prefer| Routing { prefer, ..Routing::default() };
    assert_eq!(reached(&all, Routing::default()), [1, 2, 3]);
    assert_eq!(reached(&all, prefer(Prefer::SameZone)), [1, 2]);
    assert_eq!(reached(&all, prefer(Prefer::SameNode)), [1]);
    assert_eq!(reached(&all[1..], prefer(Prefer::SameNode)), [2]);
    assert_eq!(reached(&far, prefer(Prefer::SameNode)), [3, 4]);
    assert_eq!(reached(&far, prefer(Prefer::SameZone)), [3, 4]);
}

#[test]
fn an_unknown_zone_is_no_zone() {
    let mut endpoints = [endpoint(1, "a", "west"), endpoint(2, "b", "west")];
    endpoints[1].zone = None;
    let homeless = Client { zone: None, ..client(1) };
    let routing = Routing { prefer: Prefer::SameZone, ..Routing::default() };
    let reached = [0, 1].map(|turn| chosen(&endpoints, routing, &homeless, turn).map(last));
    assert_eq!(reached, [Ok(1), Ok(2)]);
}

#[test]
fn local_only_never_leaves_the_node() {
    let routing = Routing { node_only: true, prefer: Prefer::SameZone, ..Routing::default() };
    let all = [endpoint(1, "a", "east"), endpoint(2, "b", "west")];
    assert_eq!(reached(&all, routing), [1]);
    assert_eq!(chosen(&all[1..], routing, &client(1), 0), Err(Lack::OnNode));
    assert_eq!(chosen(&[], routing, &client(1), 0), Err(Lack::Ready));
}

#[test]
fn what_still_serves_is_taken_where_nothing_is_ready() {
    let ending = |endpoint| Endpoint { ready: false, ..endpoint };
    let all = [ending(endpoint(1, "a", "west")), endpoint(2, "b", "west")];
    let local = Routing { node_only: true, ..Routing::default() };
    assert_eq!(reached(&all, local), [1], "none of this node is ready");
    assert_eq!(reached(&all, Routing::default()), [2]);
    assert_eq!(reached(&all[..1], Routing::default()), [1]);
    let mut ready = all.clone();
    ready[1].ports = [].into();
    assert_eq!(reached(&ready, Routing::default()), [1], "the ready one has not this port");
    let mut gone = all;
    gone[0].serving = false;
    assert_eq!(chosen(&gone, local, &client(1), 0), Err(Lack::OnNode));
    assert_eq!(chosen(&gone[..1], local, &client(1), 0), Err(Lack::Ready));
}

#[test]
fn a_client_keeps_its_endpoint_whatever_its_turn() {
    let routing = Routing { sticky: true, ..Routing::default() };
    let all: Vec<_> = (1..=10).map(|last| endpoint(last, "b", "east")).collect();
    let mut load = BTreeMap::<_, usize>::new();
    for number in 0..=255 {
        let turns = [0, 1, 7].map(|turn| chosen(&all, routing, &client(number), turn).unwrap());
        assert!(turns.iter().all(|address| *address == turns[0]));
        *load.entry(turns[0]).or_default() += 1;
    }
    // 256 clients over 10 endpoints: about 26 each.
    assert!(load.len() == 10 && load.values().all(|count| (8..=60).contains(count)), "{load:?}");
}

#[test]
fn an_endpoint_that_goes_moves_only_its_own_clients() {
    let routing = Routing { sticky: true, ..Routing::default() };
    let all: Vec<_> = (1..=10).map(|last| endpoint(last, "b", "east")).collect();
    let gone = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 4));
    let rest: Vec<_> = all.iter().filter(|endpoint| endpoint.address != gone).cloned().collect();
    for number in 0..=255 {
        let before = chosen(&all, routing, &client(number), 0).unwrap();
        let after = chosen(&rest, routing, &client(number), 0).unwrap();
        assert!(before == gone || before == after, "client {number}: {before} -> {after}");
    }
}

#[test]
fn every_release_chooses_alike() {
    // During a rolling upgrade, agents of two versions serve one client: the hash is part of the contract.
    let weight = weight("10.1.0.1".parse().unwrap(), "10.0.0.1".parse().unwrap()).0;
    assert_eq!(weight, 0xb401_5ab7_19a2_2cd8);
}

#[test]
fn what_is_not_offered_is_said() {
    let all = [endpoint(1, "a", "west")];
    let lack = |target: &str| {
        choose(&service(Routing::default()), &all, target.parse().unwrap(), &client(1), 0, |_| true)
            .map(|endpoint| endpoint.address)
            .unwrap_err()
    };
    assert_eq!(lack("10.96.0.1:81"), Lack::Port(81));
    assert_eq!(lack("[fd96::1]:80"), Lack::Ready);
}
