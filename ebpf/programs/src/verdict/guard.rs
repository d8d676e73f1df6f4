//! What may leave an enrolled pod towards the mesh, packet by packet.
//!
//! The connect hooks redirect well-behaved sockets; raw and packet sockets, and sockets that were
//! connected before the pod was enrolled, never ask them. The guard sits on the host's end of the
//! pod's veth, out of the pod's reach, and is the boundary: towards mesh peers it lets through what
//! the agent sends, what carries no data, and what is not TCP but comes from a real socket.

use sluice_abi::{Exemptions, Guarded, IpKey, PortKey, PortUse, ProbeKey};

use super::{
    mesh::Mesh,
    outbound::is_bypassed,
    packet::{
        ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Malformed, Network, Segment, protocol,
    },
};

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// ARP.
    Arp,
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
    /// Anything else, and everything that is tagged.
    Other,
}

impl Frame {
    /// Classifies a frame by its Ethernet type, and by whether the kernel holds a VLAN tag for it.
    #[must_use]
    #[inline(always)]
    pub fn new(ethertype: [u8; 2], vlan_tagged: bool) -> Self {
        match ethertype {
            _ if vlan_tagged => Self::Other,
            ETHERTYPE_ARP => Self::Arp,
            ETHERTYPE_IPV4 => Self::Ipv4,
            ETHERTYPE_IPV6 => Self::Ipv6,
            _ => Self::Other,
        }
    }
}

/// Whose socket sent a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The agent's: it carries our mark.
    Agent,
    /// A UDP socket of the pod.
    Udp,
    /// A TCP socket of the pod.
    Tcp,
    /// Any other socket, or none: forwarded or crafted.
    Other,
}

/// What a packet must be to pass.
#[must_use = "a dropped rule lets plaintext through"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Anything.
    Pass,
    /// Nothing can make it pass.
    Drop,
    /// Its TCP header decides which rule applies.
    ReadTcp,
    /// The protocol that its IPv6 fragment header names decides.
    ReadFragment,
    /// Sent by the agent.
    FromAgent,
    /// Sent by a UDP socket.
    FromUdp,
    /// Sent by the agent or by a UDP socket.
    FromAgentOrUdp,
}

/// What the guard does with a packet.
#[must_use = "a dropped verdict lets plaintext through"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guard {
    /// Let it go on.
    Pass,
    /// Let it go on, and count it as unencrypted UDP.
    PassUdp,
    /// Stop it.
    Drop,
}

/// The rule for a packet from the pod in `slot`, by its network header.
#[inline(always)]
pub fn rule(network: &Network, slot: u32, mesh: &impl Mesh) -> Rule {
    if !mesh.covers(&network.destination) {
        return Rule::Pass;
    }
    if !may_send_from(&network.source, network.protocol, slot, mesh) {
        return Rule::Drop;
    }
    match (network.protocol, network.destination.is_v4()) {
        // The header may be in another fragment, so the socket alone decides.
        (protocol::TCP, _) if network.fragment => Rule::FromAgent,
        (protocol::TCP, _) => Rule::ReadTcp,
        (protocol::UDP, _) => Rule::FromUdp,
        (protocol::ICMP, true) | (protocol::ICMPV6, false) => Rule::Pass,
        (protocol::FRAGMENT, false) => Rule::ReadFragment,
        (next_header, false) if is_extension(next_header) => Rule::FromAgentOrUdp,
        (_, _) => Rule::Drop,
    }
}

/// The rule for an IPv6 fragment to a peer, by the next header in its fragment header; `None` when that is cut off.
/// A later fragment may lie about it, but whoever puts the packet together believes the first one (RFC 8200, 4.5),
/// which is judged here too.
#[inline(always)]
pub fn fragment_rule(next_header: Option<u8>) -> Rule {
    match next_header {
        Some(protocol::UDP) => Rule::FromUdp,
        Some(protocol::ICMPV6) => Rule::Pass,
        Some(_) => Rule::FromAgentOrUdp,
        None => Rule::Drop,
    }
}

/// The rule for a TCP segment to a peer.
#[inline(always)]
pub fn tcp_rule(segment: Result<Segment, Malformed>) -> Rule {
    match segment {
        Ok(Segment { opens: false, carries_data: false, .. }) => Rule::Pass,
        Ok(Segment { .. }) => Rule::FromAgent,
        Err(Malformed) => Rule::Drop,
    }
}

/// Applies a rule to whoever sent the packet.
#[inline(always)]
pub fn apply(rule: Rule, sender: impl FnOnce() -> Sender) -> Guard {
    match rule {
        Rule::Pass => Guard::Pass,
        Rule::Drop | Rule::ReadTcp | Rule::ReadFragment => Guard::Drop,
        Rule::FromAgent => match sender() {
            Sender::Agent => Guard::Pass,
            Sender::Udp | Sender::Tcp | Sender::Other => Guard::Drop,
        },
        Rule::FromUdp => match sender() {
            Sender::Udp => Guard::PassUdp,
            Sender::Agent | Sender::Tcp | Sender::Other => Guard::Drop,
        },
        Rule::FromAgentOrUdp => match sender() {
            Sender::Agent => Guard::Pass,
            Sender::Udp => Guard::PassUdp,
            Sender::Tcp | Sender::Other => Guard::Drop,
        },
    }
}

/// Whether a packet that would be dropped may pass after all, because of an opt-out or because it
/// answers a probe. Called only then, so mesh traffic pays nothing for it.
///
/// `segment` is the packet's TCP header; `None` if it is not TCP or does not show the header. A
/// packet that answers a connection must come from a TCP socket of the pod, which a raw packet does
/// not. That socket has accepted the connection: one that connects is captured or left alone by its
/// hook.
#[inline(always)]
pub fn is_exempt(
    network: &Network,
    segment: Option<Segment>,
    pod: &Guarded,
    sender: impl FnOnce() -> Sender,
    mesh: &impl Mesh,
) -> bool {
    let Guarded { slot, exemptions } = *pod;
    if !may_send_from(&network.source, network.protocol, slot, mesh) {
        return false;
    }
    let Some(segment) = segment else {
        return exemptions.has(Exemptions::OUTBOUND_NETWORKS)
            && mesh.is_exempt_network(slot, &network.destination);
    };
    if is_bypassed(&network.destination, segment.destination_port, slot, exemptions, mesh) {
        return true;
    }
    !segment.opens && answers(network, &segment, pod, mesh) && sender() == Sender::Tcp
}

/// Whether a segment belongs to a connection that the pod's own sockets accept: one to an exempt
/// inbound port, or a probe.
#[inline(always)]
fn answers(network: &Network, segment: &Segment, pod: &Guarded, mesh: &impl Mesh) -> bool {
    let Guarded { slot, exemptions } = *pod;
    let Segment { source_port, destination_port, .. } = *segment;
    let connection =
        ProbeKey::new((network.destination, destination_port), (network.source, source_port));
    (exemptions.has(Exemptions::INBOUND_PORTS)
        && mesh.is_exempt(&PortKey::new(slot, PortUse::Inbound, source_port)))
        || (exemptions.has(Exemptions::PROBES) && mesh.is_probe(&connection, slot))
}

/// Whether the pod in `slot` may send to a peer from this address. It must be one of the pod's own,
/// except that `ICMPv6` may use a link-local address: neighbour discovery does so towards a neighbour's
/// global address (RFC 4861, 7.3.3).
#[inline(always)]
fn may_send_from(source: &IpKey, protocol: u8, slot: u32, mesh: &impl Mesh) -> bool {
    mesh.local(source).is_some_and(|local| local.slot == slot)
        || (protocol == protocol::ICMPV6 && source.is_link_local_v6())
}

/// Whether an IPv6 next header is one of the extensions (RFC 8200, 4.1) behind which nothing is read: hop-by-hop or
/// destination options. A routing header is refused right behind the IPv6 header (`packet::ipv6`), and is not looked
/// for behind these: such a packet is judged by the destination that the IPv6 header names.
#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    matches!(next_header, 0 | 60)
}

#[cfg(test)]
mod tests;
