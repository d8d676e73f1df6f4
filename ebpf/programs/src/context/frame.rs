//! `__sk_buff`: a frame on an interface, and the socket that sent it.

use core::mem::size_of;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_sk_fullsock, bpf_skb_load_bytes},
};

use super::{AF_INET, AF_INET6, IPPROTO_TCP, port_of_low_half};
use crate::storage::Socket;

const IPPROTO_UDP: u32 = 17;
const SOCK_STREAM: u32 = 1;
const SOCK_DGRAM: u32 = 2;
/// `ETH_HLEN`: the guard runs on Ethernet devices only.
const ETHERNET_HEADER: u32 = 14;

/// `__sk_buff`: a frame on an interface.
#[derive(Clone, Copy)]
pub(crate) struct SkBuff(pub(crate) *mut __sk_buff);

impl SkBuff {
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        word!(__sk_buff, self.0, ifindex)
    }

    /// The Ethernet type, in network order.
    #[inline(always)]
    pub(crate) fn ethertype(self) -> [u8; 2] {
        port_of_low_half(word!(__sk_buff, self.0, protocol))
    }

    #[inline(always)]
    pub(crate) fn is_vlan_tagged(self) -> bool {
        word!(__sk_buff, self.0, vlan_present) != 0
    }

    /// Bytes from the network header to the frame's end.
    #[inline(always)]
    pub(crate) fn network_length(self) -> u32 {
        word!(__sk_buff, self.0, len).saturating_sub(ETHERNET_HEADER)
    }

    /// Copies `N` words from `offset` bytes after the Ethernet header; `None` if the frame is shorter.
    #[inline(always)]
    pub(crate) fn words<const N: usize>(self, offset: u32) -> Option<[u32; N]> {
        let mut words = [0_u32; N];
        let length = size_of::<[u32; N]>() as u32;
        let to = words.as_mut_ptr().cast();
        // SAFETY: `to` has room for the `length` bytes; the helper checks the offset and copies also
        // from parts of the frame that are not linear.
        let result =
            unsafe { bpf_skb_load_bytes(self.0.cast(), ETHERNET_HEADER + offset, to, length) };
        if result == 0 { Some(words) } else { None }
    }

    /// Returns the socket that sent the frame if it is a full one, not a request or time-wait
    /// socket.
    #[inline(always)]
    pub(crate) fn socket(self) -> Option<SenderSocket> {
        let socket = pointer!(__sk_buff, self.0, __bindgen_anon_2);
        if socket.is_null() {
            return None;
        }
        // SAFETY: not null, and alive as long as the frame that it sent.
        let full = unsafe { bpf_sk_fullsock(socket) };
        if full.is_null() { None } else { Some(SenderSocket(full)) }
    }
}

/// A full socket that sent a frame.
#[derive(Clone, Copy)]
pub(crate) struct SenderSocket(*mut bpf_sock);

impl SenderSocket {
    #[inline(always)]
    pub(crate) fn socket(self) -> Option<Socket> {
        Socket::new(self.0)
    }

    /// Whether it is an ordinary UDP socket, not a raw one, whose owner can make up any packet.
    #[inline(always)]
    pub(crate) fn is_udp(self) -> bool {
        self.is(SOCK_DGRAM, IPPROTO_UDP)
    }

    /// Whether it is an ordinary TCP socket.
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        self.is(SOCK_STREAM, IPPROTO_TCP)
    }

    #[inline(always)]
    fn is(self, kind: u32, protocol: u32) -> bool {
        let family = word!(bpf_sock, self.0, family);
        (family == AF_INET || family == AF_INET6)
            && word!(bpf_sock, self.0, type_) == kind
            && word!(bpf_sock, self.0, protocol) == protocol
    }
}
