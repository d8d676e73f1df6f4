//! Packets put together by hand, with the checksums that a router looks at.

use std::net::{IpAddr, SocketAddr};

/// The hardware address of every gateway in a routed world.
const GATEWAY: [u8; 6] = [0xee; 6];
const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 0x99];

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const SYN: u8 = 0x02;
pub(super) const PSH_ACK: u8 = 0x18;

pub(super) fn ethernet(destination: IpAddr, packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if destination.is_ipv6() { [0x86, 0xdd] } else { [0x08, 0x00] };
    [&GATEWAY[..], &SENDER, &kind, packet].concat()
}

pub(super) fn packet(source: IpAddr, destination: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            v4(source.octets(), destination.octets(), [0, 0, protocol], &[], payload)
        }
        _ => v6(source, destination, protocol, payload),
    }
}

/// Returns a fragment other than the first, which has no transport header to judge by.
pub(super) fn fragment(source: IpAddr, destination: IpAddr, payload: &[u8]) -> Vec<u8> {
    if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) {
        // More fragments to come; this one is 64 units of eight bytes from the start.
        return v4(source.octets(), destination.octets(), [0x20, 64, TCP], &[], payload);
    }
    // RFC 8200 section 4.5: next header, reserved, offset and flags, identification.
    let header = [TCP, 0, 0x02, 0x01, 0, 0, 0, 7];
    v6(source, destination, 44, &[&header, payload].concat())
}

/// Returns a packet with a TCP segment behind no-operation options (IPv4) or destination options (IPv6).
pub(super) fn extended(source: IpAddr, destination: IpAddr, segment: &[u8]) -> Vec<u8> {
    if let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) {
        return v4(source.octets(), destination.octets(), [0, 0, TCP], &[1, 1, 1, 1], segment);
    }
    // RFC 8200 section 4.6, padded with PadN to eight bytes.
    let header = [TCP, 0, 1, 4, 0, 0, 0, 0];
    v6(source, destination, 60, &[&header, segment].concat())
}

/// Returns a TCP segment without a checksum: only a receiver would look at it, and none receives it.
pub(super) fn segment(
    source: SocketAddr,
    destination: SocketAddr,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    segment
}

pub(super) fn datagram(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX);
    let mut datagram = Vec::new();
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(destination.port().to_be_bytes());
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// Returns an IPv4 packet with `[flags and offset, offset, protocol]` as they stand in the header.
fn v4(
    source: [u8; 4],
    destination: [u8; 4],
    [fragment, offset, protocol]: [u8; 3],
    options: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let words = u8::try_from(5 + options.len() / 4).unwrap_or(5);
    let total = u16::try_from(usize::from(words) * 4 + payload.len()).unwrap_or(u16::MAX);
    let header = |checksum: u16| {
        let mut header = vec![0x40 | words, 0];
        header.extend(total.to_be_bytes());
        header.extend([0, 7, fragment, offset, 64, protocol]);
        header.extend(checksum.to_be_bytes());
        header.extend(source);
        header.extend(destination);
        header.extend(options);
        header
    };
    let mut packet = header(checksum(&header(0)));
    packet.extend(payload);
    packet
}

fn v6(source: IpAddr, destination: IpAddr, next: u8, payload: &[u8]) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V6(v6) => v6.octets(),
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
    };
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(octets(source));
    packet.extend(octets(destination));
    packet.extend(payload);
    packet
}

/// Returns the Internet checksum of a header (RFC 1071).
fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks(2).map(|pair| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    });
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or(0)
}
