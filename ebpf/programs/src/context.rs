//! The only raw reads and writes of program contexts.
//!
//! Every read is one instruction with a fixed offset, as the verifier demands. Left to itself the
//! compiler merges the reads of two branches into one at a computed address, volatile or not, which
//! ends in "dereference of modified ctx ptr R6 off=60 disallowed". Hence the assembly.

use core::{
    arch::asm,
    ffi::{c_int, c_long},
    mem::{offset_of, size_of},
    ptr,
};

use aya_ebpf::{
    bindings::{__sk_buff, bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops},
    helpers::generated::{
        bpf_bind, bpf_get_netns_cookie, bpf_set_retval, bpf_setsockopt, bpf_sk_assign,
        bpf_sk_fullsock, bpf_sk_release, bpf_skb_load_bytes, bpf_skc_to_mptcp_sock,
    },
};
use sluice_abi::IpKey;

use crate::{
    maps::LISTENERS,
    storage::Socket,
    tunables::{HAS_MPTCP, HAS_SET_RETVAL, is_set},
};

pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 10;
pub(crate) const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const SOCK_DGRAM: u32 = 2;
const SOL_SOCKET: c_int = 1;
const SO_BINDTODEVICE: c_int = 25;
const ECONNREFUSED: c_int = 111;
/// `ETH_HLEN`: the guard runs on Ethernet devices only.
const ETHERNET_HEADER: u32 = 14;
const SK_LOOKUP_REPLACE: u64 = 1;
const SK_LOOKUP_NO_REUSEPORT: u64 = 2;

/// Reads a `u32` field of a context or socket, at its own offset.
macro_rules! word {
    ($type:ty, $context:expr, $field:ident) => {
        word!($type, $context, $field, 0)
    };
    ($type:ty, $context:expr, $field:ident, $index:literal) => {{
        let context: *mut $type = $context;
        let value: u64;
        // SAFETY: the kernel hands every hook a live context of its type for the whole of its run, and
        // sockets are checked for null; the offset is that of a field of four bytes.
        unsafe {
            asm!(
                "{value} = *(u32 *)({context} + {offset})",
                value = out(reg) value,
                context = in(reg) context,
                offset = const offset_of!($type, $field) + 4 * $index,
                options(nostack, pure, readonly),
            );
        }
        value as u32
    }};
}

/// Reads a pointer field of a context, at its own offset.
macro_rules! pointer {
    ($type:ty, $context:expr, $field:ident) => {{
        let context: *mut $type = $context;
        let value: *mut bpf_sock;
        // SAFETY: as for `word`; the fields that this is used for are unions of one aligned pointer.
        unsafe {
            asm!(
                "{value} = *(u64 *)({context} + {offset})",
                value = out(reg) value,
                context = in(reg) context,
                offset = const offset_of!($type, $field),
                options(nostack, pure, readonly),
            );
        }
        value
    }};
}

/// Writes one field of a context, at its own offset.
macro_rules! set_field {
    ($context:expr, $($field:tt)+) => {{
        let (context, value) = $context;
        // SAFETY: as for `word`; the verifier admits writes to these fields alone.
        unsafe { (&raw mut (*context).$($field)+).write_volatile(value) }
    }};
}

/// A port in network order, from the low half of a word in which the kernel keeps it.
#[inline(always)]
const fn port_of_low_half(word: u32) -> [u8; 2] {
    let [a, b, _, _] = word.to_ne_bytes();
    [a, b]
}

/// `bpf_sock_addr`: a socket call's address.
#[derive(Clone, Copy)]
pub(crate) struct SockAddr(pub(crate) *mut bpf_sock_addr);

impl SockAddr {
    #[inline(always)]
    pub(crate) fn protocol(self) -> u32 {
        word!(bpf_sock_addr, self.0, protocol)
    }

    #[inline(always)]
    pub(crate) fn netns_cookie(self) -> u64 {
        // SAFETY: a context of a type that the helper takes.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub(crate) fn socket(self) -> Option<Socket> {
        Socket::new(self.bpf_sock())
    }

    /// The MPTCP socket whose subflow this is, where the kernel can tell.
    #[inline(always)]
    pub(crate) fn mptcp_socket(self) -> Option<Socket> {
        if !is_set(&HAS_MPTCP) {
            return None;
        }
        let subflow = self.socket()?;
        // SAFETY: takes any socket, and returns null for one that is not a subflow.
        Socket::new(unsafe { bpf_skc_to_mptcp_sock(subflow.as_ptr()) })
    }

    #[inline(always)]
    pub(crate) fn address_v4(self) -> IpKey {
        IpKey::from_v4_word(word!(bpf_sock_addr, self.0, user_ip4))
    }

    #[inline(always)]
    pub(crate) fn address_v6(self) -> IpKey {
        let (w0, w1) =
            (word!(bpf_sock_addr, self.0, user_ip6, 0), word!(bpf_sock_addr, self.0, user_ip6, 1));
        let (w2, w3) =
            (word!(bpf_sock_addr, self.0, user_ip6, 2), word!(bpf_sock_addr, self.0, user_ip6, 3));
        IpKey::from_words([w0, w1, w2, w3])
    }

    /// In network order.
    #[inline(always)]
    pub(crate) fn port(self) -> [u8; 2] {
        port_of_low_half(word!(bpf_sock_addr, self.0, user_port))
    }

    #[inline(always)]
    pub(crate) fn set_address_v4(self, address: &IpKey) {
        let [_, _, _, word] = address.words();
        set_field!((self.0, word), user_ip4);
    }

    #[inline(always)]
    pub(crate) fn set_address_v6(self, address: &IpKey) {
        let [w0, w1, w2, w3] = address.words();
        set_field!((self.0, w0), user_ip6[0]);
        set_field!((self.0, w1), user_ip6[1]);
        set_field!((self.0, w2), user_ip6[2]);
        set_field!((self.0, w3), user_ip6[3]);
    }

    #[inline(always)]
    pub(crate) fn set_port(self, [a, b]: [u8; 2]) {
        set_field!((self.0, u32::from_ne_bytes([a, b, 0, 0])), user_port);
    }

    /// Whether the socket is bound to an interface (`SO_BINDTODEVICE`).
    #[inline(always)]
    pub(crate) fn is_bound_to_device(self) -> bool {
        let socket = self.bpf_sock();
        !socket.is_null() && word!(bpf_sock, socket, bound_dev_if) != 0
    }

    /// Lets the socket leave its interface; whether that went well.
    #[inline(always)]
    pub(crate) fn unbind_device(self) -> bool {
        let mut none = [0_u8; 4];
        // SAFETY: the value is four readable bytes, as long as stated.
        let result = unsafe {
            bpf_setsockopt(self.0.cast(), SOL_SOCKET, SO_BINDTODEVICE, none.as_mut_ptr().cast(), 4)
        };
        result == 0
    }

    /// Whether the socket, of family IPv4, has neither address nor port yet.
    #[inline(always)]
    pub(crate) fn is_unbound_v4(self) -> bool {
        let socket = self.bpf_sock();
        !socket.is_null()
            && word!(bpf_sock, socket, src_port) == 0
            && word!(bpf_sock, socket, src_ip4) == 0
    }

    /// Whether the socket, of family IPv6, has neither address nor port yet.
    #[inline(always)]
    pub(crate) fn is_unbound_v6(self) -> bool {
        let socket = self.bpf_sock();
        if socket.is_null() || word!(bpf_sock, socket, src_port) != 0 {
            return false;
        }
        let (w0, w1) = (word!(bpf_sock, socket, src_ip6, 0), word!(bpf_sock, socket, src_ip6, 1));
        let (w2, w3) = (word!(bpf_sock, socket, src_ip6, 2), word!(bpf_sock, socket, src_ip6, 3));
        w0 | w1 | w2 | w3 == 0
    }

    /// Binds the socket to an IPv4 address and any port; whether that went well.
    #[inline(always)]
    pub(crate) fn bind_v4(self, address: &IpKey) -> bool {
        let [_, _, _, word] = address.words();
        let mut name = SockAddrIn { family: 2, port: [0; 2], address: word, zero: [0; 8] };
        self.bind(&mut name)
    }

    /// Binds the socket to an IPv6 or mapped address and any port; whether that went well.
    #[inline(always)]
    pub(crate) fn bind_v6(self, address: &IpKey) -> bool {
        let mut name =
            SockAddrIn6 { family: 10, port: [0; 2], flow: 0, address: address.words(), scope: 0 };
        self.bind(&mut name)
    }

    #[inline(always)]
    fn bind<T>(self, name: &mut T) -> bool {
        // SAFETY: `name` is a whole `sockaddr_in` or `sockaddr_in6` on the stack, as long as stated.
        let result: c_long =
            unsafe { bpf_bind(self.0, ptr::from_mut(name).cast(), size_of::<T>() as c_int) };
        result == 0
    }

    #[inline(always)]
    fn bpf_sock(self) -> *mut bpf_sock {
        pointer!(bpf_sock_addr, self.0, __bindgen_anon_1)
    }
}

/// `struct sockaddr_in`.
#[repr(C)]
struct SockAddrIn {
    family: u16,
    port: [u8; 2],
    address: u32,
    zero: [u8; 8],
}

/// `struct sockaddr_in6`.
#[repr(C)]
struct SockAddrIn6 {
    family: u16,
    port: [u8; 2],
    flow: u32,
    address: [u32; 4],
    scope: u32,
}

/// Makes the refused call fail with `ECONNREFUSED` where the kernel can; elsewhere it is `EPERM`.
#[inline(always)]
pub(crate) fn refuse() {
    if is_set(&HAS_SET_RETVAL) {
        // SAFETY: any negative errno will do.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
}

/// `bpf_sock_ops`: an event of a TCP socket.
#[derive(Clone, Copy)]
pub(crate) struct SockOps(pub(crate) *mut bpf_sock_ops);

impl SockOps {
    #[inline(always)]
    pub(crate) fn operation(self) -> u32 {
        word!(bpf_sock_ops, self.0, op)
    }

    #[inline(always)]
    pub(crate) fn netns_cookie(self) -> u64 {
        // SAFETY: a context of a type that the helper takes since Linux 5.15.
        unsafe { bpf_get_netns_cookie(self.0.cast()) }
    }

    #[inline(always)]
    pub(crate) fn socket(self) -> Option<Socket> {
        Socket::new(pointer!(bpf_sock_ops, self.0, __bindgen_anon_2))
    }

    /// The socket's own address and port.
    #[inline(always)]
    pub(crate) fn local(self) -> (IpKey, [u8; 2]) {
        let port = word!(bpf_sock_ops, self.0, local_port);
        let [.., a, b] = port.to_be_bytes();
        let address = if word!(bpf_sock_ops, self.0, family) == AF_INET {
            self.local_v4()
        } else {
            self.local_v6()
        };
        (address, [a, b])
    }

    /// The other end's address and port.
    #[inline(always)]
    pub(crate) fn remote(self) -> (IpKey, [u8; 2]) {
        // The kernel keeps this port, in network order, in the word's last two bytes.
        let [.., a, b] = u32::from_be(word!(bpf_sock_ops, self.0, remote_port)).to_be_bytes();
        let address = if word!(bpf_sock_ops, self.0, family) == AF_INET {
            self.remote_v4()
        } else {
            self.remote_v6()
        };
        (address, [a, b])
    }

    #[inline(always)]
    fn local_v4(self) -> IpKey {
        IpKey::from_v4_word(word!(bpf_sock_ops, self.0, local_ip4))
    }

    #[inline(always)]
    fn local_v6(self) -> IpKey {
        let (w0, w1) =
            (word!(bpf_sock_ops, self.0, local_ip6, 0), word!(bpf_sock_ops, self.0, local_ip6, 1));
        let (w2, w3) =
            (word!(bpf_sock_ops, self.0, local_ip6, 2), word!(bpf_sock_ops, self.0, local_ip6, 3));
        IpKey::from_words([w0, w1, w2, w3])
    }

    #[inline(always)]
    fn remote_v4(self) -> IpKey {
        IpKey::from_v4_word(word!(bpf_sock_ops, self.0, remote_ip4))
    }

    #[inline(always)]
    fn remote_v6(self) -> IpKey {
        let (w0, w1) = (
            word!(bpf_sock_ops, self.0, remote_ip6, 0),
            word!(bpf_sock_ops, self.0, remote_ip6, 1),
        );
        let (w2, w3) = (
            word!(bpf_sock_ops, self.0, remote_ip6, 2),
            word!(bpf_sock_ops, self.0, remote_ip6, 3),
        );
        IpKey::from_words([w0, w1, w2, w3])
    }
}

/// `bpf_sk_lookup`: a packet in search of a socket.
#[derive(Clone, Copy)]
pub(crate) struct SkLookup(pub(crate) *mut bpf_sk_lookup);

impl SkLookup {
    #[inline(always)]
    pub(crate) fn protocol(self) -> u32 {
        word!(bpf_sk_lookup, self.0, protocol)
    }

    #[inline(always)]
    pub(crate) fn is_v4(self) -> bool {
        word!(bpf_sk_lookup, self.0, family) == AF_INET
    }

    #[inline(always)]
    pub(crate) fn is_v6(self) -> bool {
        word!(bpf_sk_lookup, self.0, family) == AF_INET6
    }

    #[inline(always)]
    pub(crate) fn addresses_v4(self) -> (IpKey, IpKey) {
        let (remote, local) =
            (word!(bpf_sk_lookup, self.0, remote_ip4), word!(bpf_sk_lookup, self.0, local_ip4));
        (IpKey::from_v4_word(remote), IpKey::from_v4_word(local))
    }

    #[inline(always)]
    pub(crate) fn addresses_v6(self) -> (IpKey, IpKey) {
        let (r0, r1) = (
            word!(bpf_sk_lookup, self.0, remote_ip6, 0),
            word!(bpf_sk_lookup, self.0, remote_ip6, 1),
        );
        let (r2, r3) = (
            word!(bpf_sk_lookup, self.0, remote_ip6, 2),
            word!(bpf_sk_lookup, self.0, remote_ip6, 3),
        );
        let (l0, l1) = (
            word!(bpf_sk_lookup, self.0, local_ip6, 0),
            word!(bpf_sk_lookup, self.0, local_ip6, 1),
        );
        let (l2, l3) = (
            word!(bpf_sk_lookup, self.0, local_ip6, 2),
            word!(bpf_sk_lookup, self.0, local_ip6, 3),
        );
        (IpKey::from_words([r0, r1, r2, r3]), IpKey::from_words([l0, l1, l2, l3]))
    }

    /// Gives the packet to a listener; whether there is one and it took it.
    #[inline(always)]
    pub(crate) fn assign(self, index: u32) -> Assigned {
        let map = ptr::from_ref(&LISTENERS).cast_mut().cast();
        // SAFETY: the map's key is a `u32`; the reference that comes back is released below.
        let listener = unsafe {
            aya_ebpf::helpers::generated::bpf_map_lookup_elem(map, ptr::from_ref(&index).cast())
        };
        if listener.is_null() {
            return Assigned::Nobody;
        }
        // SAFETY: not null, hence a referenced socket.
        let result = unsafe {
            bpf_sk_assign(self.0.cast(), listener, SK_LOOKUP_REPLACE | SK_LOOKUP_NO_REUSEPORT)
        };
        // SAFETY: referenced by the lookup above, and not used after this.
        unsafe { bpf_sk_release(listener) };
        if result == 0 { Assigned::Taken } else { Assigned::Failed }
    }
}

/// What came of giving a packet to a listener.
pub(crate) enum Assigned {
    Taken,
    Nobody,
    Failed,
}

/// `__sk_buff`: a frame on an interface.
#[derive(Clone, Copy)]
pub(crate) struct SkBuff(pub(crate) *mut __sk_buff);

impl SkBuff {
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        word!(__sk_buff, self.0, ifindex)
    }

    /// In network order.
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

    /// The socket that sent the frame, if it is a full one (no request or time-wait socket).
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

    /// Whether it is an ordinary UDP socket: not a raw one, whose packets its owner makes up.
    #[inline(always)]
    pub(crate) fn is_udp(self) -> bool {
        let family = word!(bpf_sock, self.0, family);
        (family == AF_INET || family == AF_INET6)
            && word!(bpf_sock, self.0, type_) == SOCK_DGRAM
            && word!(bpf_sock, self.0, protocol) == IPPROTO_UDP
    }
}
