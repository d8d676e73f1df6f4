//! Reads the headers of a frame that leaves a pod.
//!
//! Headers come as words of network-order bytes: the hook copies them whole, because BPF has no
//! unaligned loads and the verifier follows a fixed size best. Everything a pod can craft ends up
//! here, so every length is checked against what the kernel says the frame has.

use sluice_abi::IpKey;

/// Ethernet type of IPv4.
pub const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
/// Ethernet type of ARP.
pub const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Ethernet type of IPv6.
pub const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];

/// Ethernet types of VLAN tags (IEEE 802.1Q, 802.1ad).
pub const ETHERTYPE_VLAN: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// IP protocol numbers (IANA) that are judged one by one.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// IGMP, whose packets carry the router alert option.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// The IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// The IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
}

/// A frame that no well-behaved stack sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The network header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Source address.
    pub source: IpKey,
    /// Destination address.
    pub destination: IpKey,
    /// Protocol, or the first IPv6 next header.
    pub protocol: u8,
    /// Whether this is part of a fragmented packet.
    pub fragment: bool,
    /// Length of the header.
    pub header_length: u32,
    /// Bytes after the header.
    pub length: u32,
}

/// Reads an IPv4 header (RFC 791) of a packet of `available` bytes.
#[inline(always)]
pub fn ipv4(header: &[u32; 5], available: u32) -> Result<Network, Malformed> {
    let [w0, w1, w2, source, destination] = *header;
    let [version_and_words, _, total_high, total_low] = w0.to_ne_bytes();
    let [_, _, fragment_high, fragment_low] = w1.to_ne_bytes();
    let [_, protocol, _, _] = w2.to_ne_bytes();
    let header_length = u32::from(version_and_words & 0x0f) * 4;
    // The field is 0 if the length does not fit (BIG TCP, Linux 6.3); then the frame's length applies.
    let total = match u32::from(u16::from_be_bytes([total_high, total_low])) {
        0 => available,
        total => total,
    };
    if version_and_words >> 4 != 4
        || header_length < 20
        || total < header_length
        || total > available
    {
        return Err(Malformed);
    }
    // Options can route a packet to a destination other than its header's; only IGMP needs any.
    if header_length > 20 && protocol != protocol::IGMP {
        return Err(Malformed);
    }
    Ok(Network {
        source: IpKey::from_v4_word(source),
        destination: IpKey::from_v4_word(destination),
        protocol,
        // "More fragments" or an offset; "don't fragment" is bit 0x40.
        fragment: fragment_high & 0x3f != 0 || fragment_low != 0,
        header_length,
        length: total - header_length,
    })
}

/// Reads an IPv6 header (RFC 8200) of a packet of `available` bytes.
#[inline(always)]
pub fn ipv6(header: &[u32; 10], available: u32) -> Result<Network, Malformed> {
    let [w0, w1, s0, s1, s2, s3, d0, d1, d2, d3] = *header;
    let [version, ..] = w0.to_ne_bytes();
    let [length_high, length_low, next_header, _] = w1.to_ne_bytes();
    if version >> 4 != 6 || available < 40 {
        return Err(Malformed);
    }
    let room = available - 40;
    // As for IPv4, 0 stands for a length that does not fit.
    let length = match u32::from(u16::from_be_bytes([length_high, length_low])) {
        0 => room,
        length => length,
    };
    // A routing header leads to a destination other than this header's.
    if length > room || next_header == protocol::ROUTING {
        return Err(Malformed);
    }
    let (source, destination) =
        (IpKey::from_words([s0, s1, s2, s3]), IpKey::from_words([d0, d1, d2, d3]));
    // A mapped address never appears on the wire (RFC 4291, 2.5.5.2); here it would pass for IPv4.
    if source.is_v4() || destination.is_v4() {
        return Err(Malformed);
    }
    Ok(Network {
        source,
        destination,
        protocol: next_header,
        fragment: false,
        header_length: 40,
        length,
    })
}

/// The parts of a TCP segment that the guard needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source port, in network order.
    pub source_port: [u8; 2],
    /// Destination port, in network order.
    pub destination_port: [u8; 2],
    /// Whether it opens a connection: SYN without ACK.
    pub opens: bool,
    /// Whether it carries data.
    pub carries_data: bool,
}

/// Reads the first 16 bytes of a TCP header (RFC 9293) of a segment of `length` bytes.
#[inline(always)]
pub fn tcp(header: &[u32; 4], length: u32) -> Result<Segment, Malformed> {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    let [w0, .., w3] = *header;
    let [s0, s1, d0, d1] = w0.to_ne_bytes();
    let [words, flags, ..] = w3.to_ne_bytes();
    let header_length = u32::from(words >> 4) * 4;
    if header_length < 20 || header_length > length {
        return Err(Malformed);
    }
    Ok(Segment {
        source_port: [s0, s1],
        destination_port: [d0, d1],
        opens: flags & (SYN | ACK) == SYN,
        carries_data: length > header_length,
    })
}

#[cfg(test)]
mod tests;
