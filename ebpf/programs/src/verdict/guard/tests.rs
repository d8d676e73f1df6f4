//! The guard's rules for the pod in slot 1 (`10.1.0.2`, `fd00:1::2`).

use super::*;
use crate::verdict::mesh::fake::{FAKE, Fake, key};

fn packet(source: &str, destination: &str, protocol: u8) -> Network {
    Network {
        source: key(source),
        destination: key(destination),
        protocol,
        fragment: false,
        header_length: 20,
        length: 40,
    }
}

fn rule_of(source: &str, destination: &str, protocol: u8) -> Rule {
    rule(&packet(source, destination, protocol), 1, &FAKE)
}

#[test]
fn only_untagged_ip_and_arp_frames_are_understood() {
    assert_eq!(Frame::new(ETHERTYPE_IPV4, false), Frame::Ipv4);
    assert_eq!(Frame::new(ETHERTYPE_IPV6, false), Frame::Ipv6);
    assert_eq!(Frame::new(ETHERTYPE_ARP, false), Frame::Arp);
    assert_eq!(Frame::new(ETHERTYPE_IPV4, true), Frame::Other, "tag held by the kernel");
    assert_eq!(Frame::new([0x81, 0x00], false), Frame::Other, "tag in the frame");
    assert_eq!(Frame::new([0x88, 0x47], false), Frame::Other, "MPLS");
}

#[test]
fn what_goes_elsewhere_passes_whatever_it_is() {
    for protocol in [protocol::TCP, protocol::UDP, 132, 50] {
        assert_eq!(rule_of("10.1.0.2", "1.1.1.1", protocol), Rule::Pass);
    }
    assert_eq!(rule_of("fe80::2", "ff02::1:ff00:3", protocol::ICMPV6), Rule::Pass);
    assert_eq!(rule_of("::", "ff02::16", 0), Rule::Pass);
}

#[test]
fn a_borrowed_source_address_does_not_reach_a_peer() {
    for source in ["10.1.0.3", "1.1.1.1", "0.0.0.0", "127.0.0.1"] {
        for protocol in [protocol::TCP, protocol::UDP, protocol::ICMP] {
            assert_eq!(rule_of(source, "10.2.0.9", protocol), Rule::Drop, "{source} {protocol}");
        }
    }
    assert_eq!(rule_of("fd00:1::3", "fd00:1::3", protocol::TCP), Rule::Drop);
    assert_eq!(rule_of("fe80::2", "fd00:1::3", protocol::TCP), Rule::Drop);
}

#[test]
fn a_second_address_of_the_pod_may_send() {
    assert_eq!(rule_of("10.1.0.22", "10.2.0.9", protocol::TCP), Rule::ReadTcp);
}

#[test]
fn each_protocol_has_its_rule() {
    assert_eq!(rule_of("10.1.0.2", "10.2.0.9", protocol::TCP), Rule::ReadTcp);
    assert_eq!(rule_of("10.1.0.2", "10.2.0.9", protocol::UDP), Rule::FromUdp);
    assert_eq!(rule_of("10.1.0.2", "10.2.0.9", protocol::ICMP), Rule::Pass);
    assert_eq!(rule_of("fd00:1::2", "fd00:1::3", protocol::ICMPV6), Rule::Pass);
    for other in [protocol::ICMPV6, 4, 41, 47, 50, 132, 0, 44] {
        assert_eq!(rule_of("10.1.0.2", "10.2.0.9", other), Rule::Drop, "IPv4 protocol {other}");
    }
    for other in [protocol::ICMP, 4, 41, 50, 51, 132] {
        assert_eq!(
            rule_of("fd00:1::2", "fd00:1::3", other),
            Rule::Drop,
            "IPv6 next header {other}"
        );
    }
    for extension in [0, 60] {
        assert_eq!(rule_of("fd00:1::2", "fd00:1::3", extension), Rule::FromAgentOrUdp);
    }
    assert_eq!(rule_of("fd00:1::2", "fd00:1::3", protocol::FRAGMENT), Rule::ReadFragment);
}

#[test]
fn a_fragment_of_ipv6_is_judged_by_what_it_is_a_fragment_of() {
    assert_eq!(fragment_rule(Some(protocol::ICMPV6)), Rule::Pass);
    assert_eq!(fragment_rule(Some(protocol::UDP)), Rule::FromUdp);
    for hidden in [protocol::TCP, 0, protocol::ROUTING, protocol::FRAGMENT, 60, 132] {
        assert_eq!(fragment_rule(Some(hidden)), Rule::FromAgentOrUdp, "{hidden}");
    }
    assert_eq!(fragment_rule(None), Rule::Drop);
}

#[test]
fn neighbours_are_probed_from_the_link_local_address() {
    assert_eq!(rule_of("fe80::2", "fd00:1::3", protocol::ICMPV6), Rule::Pass);
}

#[test]
fn a_fragment_is_judged_by_its_socket() {
    let fragment =
        |protocol| Network { fragment: true, ..packet("10.1.0.2", "10.2.0.9", protocol) };
    assert_eq!(rule(&fragment(protocol::TCP), 1, &FAKE), Rule::FromAgent);
    assert_eq!(rule(&fragment(protocol::UDP), 1, &FAKE), Rule::FromUdp);
}

#[test]
fn every_routed_destination_is_guarded_once_peers_overflow() {
    let full = Fake { capture_all: true, ..FAKE };
    assert_eq!(rule(&packet("10.1.0.2", "1.1.1.1", protocol::TCP), 1, &full), Rule::ReadTcp);
    assert_eq!(rule(&packet("0.0.0.0", "255.255.255.255", protocol::UDP), 1, &full), Rule::Pass);
}

#[test]
fn only_data_and_opening_segments_need_the_agent() {
    let rule_of = |opens, carries_data| tcp_rule(Ok(segment(1, 2, opens, carries_data)));
    assert_eq!(rule_of(false, false), Rule::Pass);
    assert_eq!(rule_of(true, false), Rule::FromAgent);
    assert_eq!(rule_of(false, true), Rule::FromAgent);
    assert_eq!(rule_of(true, true), Rule::FromAgent);
    assert_eq!(tcp_rule(Err(Malformed)), Rule::Drop);
}

#[test]
fn rules_are_applied_to_the_sender() {
    let table = [
        (Rule::FromAgent, Guard::Pass, Guard::Drop, Guard::Drop),
        (Rule::FromUdp, Guard::Drop, Guard::PassUdp, Guard::Drop),
        (Rule::FromAgentOrUdp, Guard::Pass, Guard::PassUdp, Guard::Drop),
        (Rule::Pass, Guard::Pass, Guard::Pass, Guard::Pass),
        (Rule::Drop, Guard::Drop, Guard::Drop, Guard::Drop),
        (Rule::ReadTcp, Guard::Drop, Guard::Drop, Guard::Drop),
        (Rule::ReadFragment, Guard::Drop, Guard::Drop, Guard::Drop),
    ];
    for (rule, agent, udp, other) in table {
        assert_eq!(apply(rule, || Sender::Agent), agent, "{rule:?}");
        assert_eq!(apply(rule, || Sender::Udp), udp, "{rule:?}");
        assert_eq!(apply(rule, || Sender::Other), other, "{rule:?}");
        assert_eq!(apply(rule, || Sender::Tcp), other, "{rule:?}");
    }
}

const PEER: &str = "10.2.0.9";

fn segment(source_port: u16, destination_port: u16, opens: bool, carries_data: bool) -> Segment {
    Segment {
        source_port: source_port.to_be_bytes(),
        destination_port: destination_port.to_be_bytes(),
        opens,
        carries_data,
    }
}

/// Whether the mesh exempts a TCP segment from the pod to a peer.
fn exempts(mesh: &Fake, segment: Segment, sender: Sender) -> bool {
    let pod = Guarded { slot: 1, exemptions: mesh.exemptions };
    is_exempt(&packet("10.1.0.2", PEER, protocol::TCP), Some(segment), &pod, || sender, mesh)
}

#[test]
fn an_opt_out_of_a_port_lets_exactly_that_port_pass() {
    let exemptions = Exemptions::OUTBOUND_PORTS;
    let mesh = Fake { exemptions, ports: &[(PortUse::Outbound, 5432)], ..FAKE };
    assert!(exempts(&mesh, segment(40_000, 5432, true, false), Sender::Other));
    assert!(exempts(&mesh, segment(40_000, 5432, false, true), Sender::Tcp));
    assert!(!exempts(&mesh, segment(40_000, 5433, true, false), Sender::Tcp));
    assert!(!exempts(&mesh, segment(5432, 40_000, false, true), Sender::Tcp), "its source port");
    let taken_back = Fake { exemptions: Exemptions::NONE, ..mesh };
    assert!(!exempts(&taken_back, segment(40_000, 5432, true, false), Sender::Tcp));
}

#[test]
fn an_opt_out_of_a_network_lets_its_packets_pass_from_the_pods_own_addresses() {
    let exemptions = Exemptions::OUTBOUND_NETWORKS;
    let mesh = Fake { exemptions, networks: &[PEER], ..FAKE };
    let pod = Guarded { slot: 1, exemptions };
    let passes = |source, destination, pod: &Guarded| {
        let fragment = Network { fragment: true, ..packet(source, destination, protocol::TCP) };
        is_exempt(&fragment, None, pod, || Sender::Other, &mesh)
    };
    assert!(passes("10.1.0.2", PEER, &pod));
    assert!(passes("10.1.0.22", PEER, &pod), "its other address");
    assert!(!passes("10.1.0.3", PEER, &pod), "a borrowed address");
    assert!(!passes("10.1.0.2", "10.1.0.3", &pod), "another peer");
    assert!(!passes("10.1.0.3", PEER, &Guarded { slot: 2, exemptions }), "another pod's opt-out");
}

#[test]
fn a_destination_that_the_node_reaches_directly_passes_for_every_pod() {
    let mesh = Fake { direct: &[(PEER, 5432)], ..FAKE };
    assert!(exempts(&mesh, segment(40_000, 5432, true, false), Sender::Tcp));
    assert!(!exempts(&mesh, segment(40_000, 80, true, false), Sender::Tcp));
}

#[test]
fn answers_from_an_exempt_port_need_a_socket_that_accepted() {
    let exemptions = Exemptions::INBOUND_PORTS;
    let mesh = Fake { exemptions, ports: &[(PortUse::Inbound, 9000)], ..FAKE };
    assert!(exempts(&mesh, segment(9000, 40_000, false, true), Sender::Tcp));
    assert!(!exempts(&mesh, segment(9000, 40_000, false, true), Sender::Other), "a raw packet");
    assert!(!exempts(&mesh, segment(9000, 40_000, true, false), Sender::Tcp), "it opens one");
    assert!(!exempts(&mesh, segment(40_000, 9000, false, true), Sender::Tcp), "it asks");
}

#[test]
fn a_probe_is_answered_though_the_node_counts_as_a_peer() {
    let exemptions = Exemptions::PROBES;
    let mesh = Fake { exemptions, probes: &[(PEER, 40_000, "10.1.0.2", 8080)], ..FAKE };
    assert!(exempts(&mesh, segment(8080, 40_000, false, true), Sender::Tcp));
    assert!(!exempts(&mesh, segment(8080, 40_000, false, true), Sender::Other));
    assert!(!exempts(&mesh, segment(8080, 40_001, false, true), Sender::Tcp));
    assert!(!exempts(&mesh, segment(8081, 40_000, false, true), Sender::Tcp));
}
