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
    for extension in [0, 44, 60] {
        assert_eq!(rule_of("fd00:1::2", "fd00:1::3", extension), Rule::FromAgentOrUdp);
    }
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
    let rule_of = |opens, carries_data| tcp_rule(Ok(Segment { opens, carries_data }));
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
    ];
    for (rule, agent, udp, other) in table {
        assert_eq!(apply(rule, || Sender::Agent), agent, "{rule:?}");
        assert_eq!(apply(rule, || Sender::Udp), udp, "{rule:?}");
        assert_eq!(apply(rule, || Sender::Other), other, "{rule:?}");
    }
}
