//! Which links can be guarded, from where, and which keep a pod out.

use super::*;
use crate::lab::Namespace;

fn peers_seen_from(node: &Namespace, pod: &Namespace) -> Result<Vec<VethLink>> {
    node.open().run(|| host_peers(&pod.open())).unwrap()
}

fn index_of(namespace: &Namespace, link: &str) -> u32 {
    let path = format!("/sys/class/net/{link}/ifindex");
    let output = std::process::Command::new("ip")
        .args(["netns", "exec", namespace.name(), "cat", &path])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[test]
fn every_pair_is_found_whether_up_or_down() {
    let (node, pod) = (Namespace::new("v-node"), Namespace::new("v-pod"));
    assert_eq!(peers_seen_from(&node, &pod).unwrap(), []);
    pod.veth("eth0", "host0", &node);
    pod.veth("net1", "host1", &node);
    pod.ip("link set eth0 up");
    let expected = [("eth0", "host0"), ("net1", "host1")]
        .map(|(link, peer)| VethLink { name: link.into(), host_ifindex: index_of(&node, peer) });
    assert_eq!(peers_seen_from(&node, &pod).unwrap(), expected);
}

#[test]
fn a_pair_into_a_third_namespace_keeps_the_pod_out() {
    let (node, pod, third) =
        (Namespace::new("v3-node"), Namespace::new("v3-pod"), Namespace::new("v3-third"));
    pod.veth("eth0", "host0", &node);
    pod.veth("net1", "host1", &third);
    let outcome = peers_seen_from(&node, &pod);
    assert!(matches!(outcome, Err(Error::PeerElsewhere { link }) if link == "net1"));
}

#[test]
fn equal_indexes_do_not_pass_for_a_pair() {
    let [node, pod, third, decoy] =
        ["vi-node", "vi-pod", "vi-third", "vi-decoy"].map(Namespace::new);
    let add = |at: &Namespace, link: &str, index, peer: &str, peer_index, to: &Namespace| {
        let to = to.name();
        at.ip(&format!(
            "link add {link} index {index} type veth peer name {peer} index {peer_index} netns {to}"
        ));
    };
    add(&pod, "eth0", 88, "away", 77, &third);
    add(&node, "host0", 77, "decoy", 88, &decoy);
    let outcome = peers_seen_from(&node, &pod);
    assert!(matches!(outcome, Err(Error::PeerElsewhere { link }) if link == "eth0"));
}

#[test]
fn a_link_that_is_no_veth_keeps_the_pod_out() {
    let (node, pod) = (Namespace::new("vk-node"), Namespace::new("vk-pod"));
    pod.veth("eth0", "host0", &node);
    pod.ip("tuntap add mode tun tun0");
    let outcome = peers_seen_from(&node, &pod);
    assert!(
        matches!(&outcome, Err(Error::NotVeth { link, kind }) if link == "tun0" && kind == "tun"),
        "{outcome:?}"
    );
}

#[test]
fn a_pod_is_tied_to_its_node_by_one_pair_whatever_else_it_has() {
    let [node, pod, third] = ["vt-node", "vt-pod", "vt-third"].map(Namespace::new);
    let is_tied = || node.open().run(|| is_tied_here(&pod.open()).unwrap()).unwrap();
    pod.ip("tuntap add mode tun tun0");
    pod.veth("net1", "host1", &third);
    assert!(!is_tied());
    pod.veth("eth0", "host0", &node);
    assert!(is_tied());
    let index = index_of(&node, "host0");
    let is_present = || node.open().run(|| is_here(index).unwrap()).unwrap();
    assert!(is_present());
    pod.ip("link del eth0");
    assert!(!is_present() && !is_tied());
}

#[test]
fn a_macvlan_on_a_link_of_the_node_keeps_the_pod_out() {
    let (node, pod) = (Namespace::new("vm-node"), Namespace::new("vm-pod"));
    node.ip("link add up0 type veth peer name up1");
    node.ip("link add link up0 name mac0 type macvlan");
    node.ip(&format!("link set mac0 netns {}", pod.name()));
    let outcome = peers_seen_from(&node, &pod);
    assert!(matches!(outcome, Err(Error::NotVeth { kind, .. }) if kind == "macvlan"));
}

#[test]
fn what_stays_inside_the_pod_is_no_exit() {
    let (node, pod) = (Namespace::new("vs-node"), Namespace::new("vs-pod"));
    pod.veth("eth0", "host0", &node);
    pod.ip("link add br0 type bridge");
    pod.ip("link add inner0 type veth peer name inner1");
    pod.ip("link add link eth0 name mac0 type macvlan");
    assert_eq!(peers_seen_from(&node, &pod).unwrap().len(), 1);
}
