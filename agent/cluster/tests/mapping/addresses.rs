//! Addresses that are reused, and events that are late.

use std::path::PathBuf;

use sluice_cluster::Announced;

use crate::world::{SHOP, World, client, pod};

const TERMINATING: &str = "deletionTimestamp: '2026-01-01T00:01:00Z'";

fn newer(name: &str, address: &str, metadata: &str) -> String {
    pod(name, address, [metadata, "", ""]).replace("01T00:00:00Z", "02T00:00:00Z")
}

#[test]
fn two_live_pods_with_one_address_close_that_address_alone() {
    let mut world = World::new(
        &(SHOP.to_owned()
            + &pod("a", "10.0.0.1", ["", "", ""])
            + &pod("b", "10.0.0.2", ["", "", ""])
            + &newer("c", "10.0.0.1", "")),
    );
    let said = "10.0.0.1 is claimed by shop/a and shop/c";
    assert_eq!(world.resolve("10.0.0.1:80", client(), 0), said);
    assert_eq!(world.resolve("10.0.0.2:80", client(), 0), "b 10.0.0.2:80");
    assert!(world.protects("10.0.0.1") && world.enrolled() == ["a", "b", "c"]);
    assert!(
        world.snapshot().expects_mesh("10.0.0.1".parse().unwrap(), "10.0.0.2:80".parse().unwrap())
    );
    assert_eq!(world.findings().len(), 2, "{:?}", world.findings());
    world.delete(&pod("a", "10.0.0.1", ["", "", ""]));
    assert_eq!(world.resolve("10.0.0.1:80", client(), 0), "c 10.0.0.1:80");
    assert!(world.findings().is_empty());
}

#[test]
fn the_newer_pod_has_the_address_once_the_older_is_on_its_way_out() {
    let mut world = World::new(
        &(SHOP.to_owned()
            + &pod("a", "10.0.0.1", [TERMINATING, "", ""])
            + &newer("c", "10.0.0.1", "")),
    );
    assert_eq!(world.resolve("10.0.0.1:80", client(), 0), "c 10.0.0.1:80");
    assert!(world.workload("a").unwrap().addresses.is_empty());
    // Late events of the older pod change nothing.
    world.apply(&pod("a", "10.0.0.1", [TERMINATING, "", "reason: x"]));
    assert_eq!(world.resolve("10.0.0.1:80", client(), 0), "c 10.0.0.1:80");
}

#[test]
fn a_newer_pod_that_does_not_run_or_is_on_its_way_out_itself_is_not_trusted() {
    let pending = newer("c", "10.0.0.1", "").replace("Running", "Pending");
    for (old, new) in [
        (TERMINATING, pending),
        (TERMINATING, newer("c", "10.0.0.1", TERMINATING)),
        ("", newer("c", "10.0.0.1", TERMINATING)),
    ] {
        let world = World::new(&(SHOP.to_owned() + &pod("a", "10.0.0.1", [old, "", ""]) + &new));
        let said = world.resolve("10.0.0.1:80", client(), 0);
        assert!(said.contains("is claimed by"), "{old} {new}: {said}");
    }
}

#[test]
fn pods_outside_the_mesh_may_quarrel_among_themselves() {
    let world =
        World::new(&(pod("a", "10.0.0.1", ["", "", ""]) + &pod("b", "10.0.0.1", ["", "", ""])));
    assert!(!world.protects("10.0.0.1"));
    assert_eq!(world.resolve("10.0.0.1:80", client(), 0), "unknown");
}

#[test]
fn what_the_plugin_says_counts_before_the_api_server_knows() {
    let unknown = pod("a", "10.0.0.1", ["", "", ""]).replace("podIPs: [{ip: '10.0.0.1'}], ", "");
    let mut world = World::new(&(SHOP.to_owned() + &unknown.replace("Running", "Pending")));
    assert!(world.workload("a").is_none());
    let announced = Announced {
        uid: "a".into(),
        netns: PathBuf::from("/run/netns/a"),
        addresses: vec!["10.0.0.7".parse().unwrap()],
    };
    world.cluster.announce(announced.clone());
    assert!(world.settle());
    let workload = world.workload("a").unwrap();
    assert_eq!(workload.netns.as_deref(), Some("/run/netns/a".as_ref()));
    assert!(workload.in_mesh && world.protects("10.0.0.7"));
    // A repeated announcement is not a change.
    world.cluster.announce(announced);
    assert!(!world.settle());
    world.cluster.withdraw("a");
    assert!(world.settle() && world.workload("a").is_none());
}

#[test]
fn a_new_sandbox_has_its_own_address_while_the_node_still_reports_the_last_ones() {
    let mut world = World::new(&(SHOP.to_owned() + &pod("a", "10.0.0.1", ["", "", ""])));
    let announced = Announced {
        uid: "a".into(),
        netns: PathBuf::from("/run/netns/second"),
        addresses: vec!["10.0.0.7".parse().unwrap()],
    };
    world.cluster.announce(announced.clone());
    assert!(world.settle());
    assert!(world.protects("10.0.0.7") && !world.protects("10.0.0.1"));
    // Late news of the last sandbox change nothing, nor does it to be told again.
    world.apply(&pod("a", "10.0.0.1", ["", "", "reason: x"]));
    world.cluster.announce(announced.clone());
    assert!(!world.settle() && world.protects("10.0.0.7"));
    world.apply(&pod("a", "10.0.0.7", ["", "", ""]));
    assert!(world.protects("10.0.0.7"));
    // From then on the node's word counts, also if the runtime repeats itself.
    world.apply(&pod("a", "10.0.0.8", ["", "", ""]));
    world.cluster.announce(announced);
    world.settle();
    assert!(world.protects("10.0.0.8") && !world.protects("10.0.0.7"));
}

#[test]
fn a_static_pod_is_found_by_the_uid_that_its_node_has_for_it() {
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    let mirror = format!("annotations: {{kubernetes.io/config.mirror: {HASH}}}");
    let world = World::new(&(SHOP.to_owned() + &pod("a", "10.0.0.1", [&mirror, "", ""])));
    assert_eq!(world.cluster.mirror_of(HASH, "shop", "a").as_deref(), Some("a"));
    assert_eq!(world.cluster.mirror_of(HASH, "shop", "b"), None);
    assert_eq!(world.cluster.mirror_of("a", "shop", "a"), None);
    assert_eq!(world.workload("a").unwrap().static_uid.as_deref(), Some(HASH));
}

#[test]
fn an_announced_pod_takes_the_address_over_from_one_that_is_leaving() {
    let old = pod("old", "10.0.0.1", [TERMINATING, "", ""]);
    let new = newer("new", "10.0.0.1", "")
        .replace("Running", "Pending")
        .replace("podIPs: [{ip: '10.0.0.1'}], ", "");
    let mut world = World::new(&(SHOP.to_owned() + &old + &new));
    world.cluster.announce(Announced {
        uid: "new".into(),
        netns: PathBuf::from("/run/netns/new"),
        addresses: vec!["10.0.0.1".parse().unwrap()],
    });
    world.settle();
    assert_eq!(world.resolve("10.0.0.1:80", client(), 0), "new 10.0.0.1:80");
}
