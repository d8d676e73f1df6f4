//! What may reach a pod as the kubelet's probe, packet by packet.
//!
//! The connect hook recognises the kubelet and marks its socket. The mark is still with a packet that
//! leaves through the host veth: a marked SYN opens a connection that the pod's own sockets take. From
//! then on, every packet that claims to belong to that connection must have the mark. Otherwise anyone
//! on the same link could use the kubelet's address and take over its connection.

use sluice_abi::ProbeKey;

use super::packet::{ETHERTYPE_VLAN, Malformed, Network, Segment, protocol};

/// What a packet for the pod claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Nothing that could pass for part of a probe.
    Other,
    /// Something that no well-behaved stack sends.
    Malformed,
    /// The first segment of this connection.
    Opens(ProbeKey),
    /// A segment that may carry data, of this connection or, if it hides its ports, of any between
    /// these two addresses.
    Carries(ProbeKey),
}

/// What the hook does with a packet for the pod.
#[must_use = "a dropped verdict lets an impostor through"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probing {
    /// Let it go on.
    Pass,
    /// Let it go on, and leave its connection to the application.
    Admit(ProbeKey),
    /// Stop it.
    Drop,
}

/// Whether a frame that is neither IP nor ARP may hide IP behind a VLAN tag, which the pod's stack
/// may remove.
#[must_use]
#[inline(always)]
pub fn may_hide_ip(ethertype: [u8; 2], vlan_tagged: bool) -> bool {
    vlan_tagged || ETHERTYPE_VLAN.contains(&ethertype)
}

/// Classifies a packet by its headers. `segment` reads a TCP header; `inner` reads the first byte of
/// an extension header, which names the header behind it.
#[inline(always)]
pub fn classify(
    network: &Network,
    segment: impl FnOnce() -> Result<Segment, Malformed>,
    inner: impl FnOnce() -> Option<u8>,
) -> Arrival {
    let Network { source, destination, .. } = *network;
    match network.protocol {
        protocol::TCP if !network.fragment => {
            let Ok(segment) = segment() else { return Arrival::Malformed };
            let key = || {
                ProbeKey::new(
                    (source, segment.source_port),
                    (destination, segment.destination_port),
                )
            };
            match segment {
                Segment { opens: true, .. } => Arrival::Opens(key()),
                Segment { carries_data: true, .. } => Arrival::Carries(key()),
                Segment { .. } => Arrival::Other,
            }
        }
        // A fragment, which may not show its ports.
        protocol::TCP => Arrival::Carries(ProbeKey::any_port(source, destination)),
        // Large answers from a name server on the node arrive in such fragments.
        protocol::FRAGMENT if matches!(inner(), Some(protocol::UDP | protocol::ICMPV6)) => {
            Arrival::Other
        }
        header if may_precede_tcp(header) => {
            Arrival::Carries(ProbeKey::any_port(source, destination))
        }
        _ => Arrival::Other,
    }
}

/// Whether what follows this header may be TCP of the same packet: hop-by-hop options, fragment,
/// authentication, destination options, mobility. A routing header first of all is refused before (`packet::ipv6`);
/// behind one of these it makes no difference.
#[inline(always)]
const fn may_precede_tcp(header: u8) -> bool {
    matches!(header, 0 | protocol::FRAGMENT | 51 | 60 | 135)
}

/// Judges a packet for the pod. `is_kubelets` tells whether the sender's socket has the mark of a
/// probe to this very destination; `is_known` tells whether the kubelet opened the connection.
#[inline(always)]
pub fn judge(
    arrival: Arrival,
    is_kubelets: impl FnOnce() -> bool,
    is_known: impl FnOnce(&ProbeKey) -> bool,
) -> Probing {
    match arrival {
        Arrival::Other => Probing::Pass,
        Arrival::Malformed => Probing::Drop,
        Arrival::Opens(key) => {
            if is_kubelets() {
                Probing::Admit(key)
            } else if is_known(&key) {
                Probing::Drop
            } else {
                Probing::Pass
            }
        }
        // Most packets belong to no probe; looking up the connection first spares them the other check.
        Arrival::Carries(key) => {
            if is_known(&key) && !is_kubelets() {
                Probing::Drop
            } else {
                Probing::Pass
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::mesh::fake::key;

    const NODE: &str = "10.9.9.9";
    const POD: &str = "10.1.0.2";

    fn network(protocol: u8, fragment: bool) -> Network {
        Network {
            source: key(NODE),
            destination: key(POD),
            protocol,
            fragment,
            header_length: 20,
            length: 40,
        }
    }

    fn segment(opens: bool, carries_data: bool) -> Segment {
        Segment {
            source_port: 40_000_u16.to_be_bytes(),
            destination_port: 8080_u16.to_be_bytes(),
            opens,
            carries_data,
        }
    }

    fn connection() -> ProbeKey {
        ProbeKey::new((key(NODE), 40_000_u16.to_be_bytes()), (key(POD), 8080_u16.to_be_bytes()))
    }

    fn tcp(opens: bool, carries_data: bool) -> Arrival {
        classify(&network(protocol::TCP, false), || Ok(segment(opens, carries_data)), || None)
    }

    #[test]
    fn segments_are_told_apart() {
        assert_eq!(tcp(true, false), Arrival::Opens(connection()));
        assert_eq!(tcp(true, true), Arrival::Opens(connection()), "a SYN with data");
        assert_eq!(tcp(false, true), Arrival::Carries(connection()));
        assert_eq!(tcp(false, false), Arrival::Other);
        let broken = classify(&network(protocol::TCP, false), || Err(Malformed), || None);
        assert_eq!(broken, Arrival::Malformed);
    }

    #[test]
    fn what_hides_its_ports_stands_for_every_connection_between_the_two() {
        let pair = Arrival::Carries(ProbeKey::any_port(key(NODE), key(POD)));
        let unread = || -> Result<Segment, Malformed> { unreachable!("nothing to read") };
        let of = |protocol, fragment| {
            classify(&network(protocol, fragment), unread, || Some(protocol::TCP))
        };
        assert_eq!(of(protocol::TCP, true), pair, "a fragment");
        for next_header in [0, 44, 51, 60, 135] {
            assert_eq!(of(next_header, false), pair, "{next_header}");
        }
        for plain in [protocol::UDP, protocol::ICMP, protocol::ICMPV6, 4, 41, 132] {
            assert_eq!(of(plain, false), Arrival::Other, "{plain}");
        }
        let udp = classify(&network(44, false), unread, || Some(protocol::UDP));
        assert_eq!(udp, Arrival::Other, "a fragment of a datagram");
        assert_eq!(classify(&network(44, false), unread, || None), pair, "a cut fragment header");
    }

    #[test]
    fn only_the_kubelet_opens_a_probe_and_nobody_joins_one() {
        let opens = Arrival::Opens(connection());
        let carries = Arrival::Carries(connection());
        assert_eq!(judge(opens, || true, |_| false), Probing::Admit(connection()));
        assert_eq!(judge(opens, || true, |_| true), Probing::Admit(connection()), "sent again");
        assert_eq!(judge(opens, || false, |_| true), Probing::Drop, "replayed");
        assert_eq!(judge(opens, || false, |_| false), Probing::Pass, "the agent will judge it");
        assert_eq!(judge(carries, || true, |_| true), Probing::Pass);
        assert_eq!(judge(carries, || false, |_| true), Probing::Drop, "taken over");
        assert_eq!(judge(carries, || false, |_| false), Probing::Pass);
        assert_eq!(judge(Arrival::Malformed, || true, |_| true), Probing::Drop);
        assert_eq!(judge(Arrival::Other, || false, |_| true), Probing::Pass);
    }

    #[test]
    fn tags_may_hide_ip() {
        assert!(may_hide_ip([0x08, 0x00], true), "held by the kernel");
        assert!(may_hide_ip([0x81, 0x00], false) && may_hide_ip([0x88, 0xa8], false));
        assert!(!may_hide_ip([0x88, 0xcc], false), "LLDP");
    }
}
