//! Headers as real stacks write them, and as nobody should.

use std::net::IpAddr;

use super::*;

fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    core::array::from_fn(|word| {
        u32::from_ne_bytes(bytes[word * 4..word * 4 + 4].try_into().unwrap())
    })
}

fn key(text: &str) -> IpKey {
    text.parse::<IpAddr>().unwrap().into()
}

/// 10.1.0.2 to 10.1.0.3, 60 bytes, don't fragment, TCP.
const V4: [u8; 20] = [
    0x45, 0x00, 0x00, 0x3c, 0x1c, 0x46, 0x40, 0x00, 0x40, 0x06, 0xb1, 0xe6, 10, 1, 0, 2, 10, 1, 0,
    3,
];

fn v4(change: impl FnOnce(&mut [u8; 20]), available: u32) -> Result<Network, Malformed> {
    let mut header = V4;
    change(&mut header);
    ipv4(&words(&header), available)
}

/// `fd00::2` to `fd00::3`, 24 bytes of UDP.
fn v6(change: impl FnOnce(&mut [u8; 40]), available: u32) -> Result<Network, Malformed> {
    let mut header = [0; 40];
    header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 24, protocol::UDP, 64]);
    header[8..10].copy_from_slice(&[0xfd, 0]);
    header[23] = 2;
    header[24..26].copy_from_slice(&[0xfd, 0]);
    header[39] = 3;
    change(&mut header);
    ipv6(&words(&header), available)
}

#[test]
fn an_ordinary_ipv4_header_is_read() {
    let network = v4(|_| {}, 60).unwrap();
    assert_eq!((network.source, network.destination), (key("10.1.0.2"), key("10.1.0.3")));
    assert_eq!((network.protocol, network.fragment), (protocol::TCP, false));
    assert_eq!((network.header_length, network.length), (20, 40));
}

#[test]
fn ethernet_padding_is_not_payload() {
    assert_eq!(v4(|header| header[3] = 40, 46).unwrap().length, 20);
}

#[test]
fn a_length_of_zero_means_the_whole_frame() {
    assert_eq!(v4(|header| header[2..4].fill(0), 100_020).unwrap().length, 100_000);
    assert_eq!(v6(|header| header[4..6].fill(0), 100_040).unwrap().length, 100_000);
}

#[test]
fn ipv4_that_lies_about_itself_is_malformed() {
    assert_eq!(v4(|_| {}, 59), Err(Malformed), "longer than the frame");
    assert_eq!(v4(|header| header[0] = 0x44, 60), Err(Malformed), "header of 16 bytes");
    assert_eq!(v4(|header| header[0] = 0x65, 60), Err(Malformed), "version 6");
    assert_eq!(v4(|header| header[3] = 19, 60), Err(Malformed), "shorter than its header");
}

#[test]
fn ipv4_options_are_for_igmp_only() {
    assert_eq!(v4(|header| header[0] = 0x46, 60), Err(Malformed));
    let igmp = v4(
        |header| {
            header[0] = 0x46;
            header[9] = protocol::IGMP;
        },
        60,
    );
    assert_eq!(igmp.unwrap().header_length, 24);
}

#[test]
fn fragments_are_recognised() {
    assert!(v4(|header| header[6] = 0x20, 60).unwrap().fragment, "more fragments");
    assert!(v4(|header| header[7] = 1, 60).unwrap().fragment, "small offset");
    assert!(v4(|header| header[6] = 0x01, 60).unwrap().fragment, "large offset");
    assert!(!v4(|header| header[6] = 0x40, 60).unwrap().fragment, "don't fragment");
}

#[test]
fn an_ordinary_ipv6_header_is_read() {
    let network = v6(|_| {}, 64).unwrap();
    assert_eq!((network.source, network.destination), (key("fd00::2"), key("fd00::3")));
    assert_eq!((network.protocol, network.header_length, network.length), (protocol::UDP, 40, 24));
}

#[test]
fn ipv6_that_lies_or_takes_a_detour_is_malformed() {
    assert_eq!(v6(|_| {}, 63), Err(Malformed), "longer than the frame");
    assert_eq!(v6(|_| {}, 39), Err(Malformed), "no room for the header");
    assert_eq!(v6(|header| header[0] = 0x45, 64), Err(Malformed), "version 4");
    assert_eq!(v6(|header| header[6] = protocol::ROUTING, 64), Err(Malformed), "routing header");
    let mapped = v6(
        |header| {
            header[24..34].fill(0);
            header[34..40].copy_from_slice(&[0xff, 0xff, 10, 1, 0, 3]);
        },
        64,
    );
    assert_eq!(mapped, Err(Malformed), "mapped destination");
}

fn shape(opens: bool, carries_data: bool) -> Segment {
    Segment { source_port: [0x30, 0x39], destination_port: [0x1f, 0x90], opens, carries_data }
}

fn segment(offset_byte: u8, flags: u8, length: u32) -> Result<Segment, Malformed> {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&[0x30, 0x39, 0x1f, 0x90]);
    header[12] = offset_byte;
    header[13] = flags;
    tcp(&words(&header), length)
}

#[test]
fn segments_are_told_apart_by_opening_and_data() {
    let of = |offset, flags, length| segment(offset, flags, length).unwrap();
    assert_eq!(of(0xa0, 0x02, 40), shape(true, false));
    assert_eq!(of(0xa0, 0x02, 50), shape(true, true));
    assert_eq!(of(0xa0, 0x12, 40), shape(false, false));
    assert_eq!(of(0x50, 0x10, 20), shape(false, false));
    assert_eq!(of(0x50, 0x18, 21), shape(false, true));
    assert_eq!(of(0x50, 0x04, 20), shape(false, false));
    assert_eq!(of(0x50, 0x03, 20), shape(true, false));
}

#[test]
fn a_segment_shorter_than_its_header_is_malformed() {
    assert_eq!(segment(0x40, 0x10, 20), Err(Malformed));
    assert_eq!(segment(0x60, 0x10, 20), Err(Malformed));
    assert_eq!(segment(0x50, 0x10, 19), Err(Malformed));
}
