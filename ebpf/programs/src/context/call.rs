//! `bpf_sock_addr`: the address in a socket call.

use core::{
    ffi::{c_int, c_long},
    mem::size_of,
    ptr,
};

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{
        bpf_bind, bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie,
        bpf_ktime_get_boot_ns, bpf_set_retval, bpf_setsockopt, bpf_skc_to_mptcp_sock,
    },
};
use sluice_abi::IpKey;

use super::port_of_low_half;
use crate::{
    storage::Socket,
    tunables::{HAS_MPTCP, HAS_SET_RETVAL, is_set},
};

const SOL_SOCKET: c_int = 1;
const SO_BINDTODEVICE: c_int = 25;
const ECONNREFUSED: c_int = 111;

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

    /// Returns the MPTCP socket that this subflow belongs to, if the kernel can tell.
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

    /// The port of the call's address, in network order.
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

    /// Unbinds the socket from its interface. Returns whether that succeeded.
    #[inline(always)]
    pub(crate) fn unbind_device(self) -> bool {
        let mut none = [0_u8; 4];
        // SAFETY: the value is four readable bytes, as long as stated.
        let result = unsafe {
            bpf_setsockopt(self.0.cast(), SOL_SOCKET, SO_BINDTODEVICE, none.as_mut_ptr().cast(), 4)
        };
        result == 0
    }

    /// Whether this IPv4 socket has neither address nor port yet.
    #[inline(always)]
    pub(crate) fn is_unbound_v4(self) -> bool {
        let socket = self.bpf_sock();
        !socket.is_null()
            && word!(bpf_sock, socket, src_port) == 0
            && word!(bpf_sock, socket, src_ip4) == 0
    }

    /// Whether this IPv6 socket has neither address nor port yet.
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

    /// Binds the socket to an IPv4 address and any port. Returns whether that succeeded.
    #[inline(always)]
    pub(crate) fn bind_v4(self, address: &IpKey) -> bool {
        let [_, _, _, word] = address.words();
        let mut name = SockAddrIn { family: 2, port: [0; 2], address: word, zero: [0; 8] };
        self.bind(&mut name)
    }

    /// Binds the socket to an IPv6 or mapped address and any port. Returns whether that succeeded.
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

/// The cgroup v2 of the calling task.
#[inline(always)]
pub(crate) fn task_cgroup() -> u64 {
    // SAFETY: takes nothing; a connect call always has a task.
    unsafe { bpf_get_current_cgroup_id() }
}

/// The process of the calling task, in the initial PID namespace.
#[inline(always)]
pub(crate) fn task_process() -> u32 {
    // SAFETY: as for `task_cgroup`.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    (ids >> 32) as u32
}

/// The boot clock, in nanoseconds.
#[inline(always)]
pub(crate) fn boot_time() -> u64 {
    // SAFETY: only reads a clock, which has been running since boot.
    unsafe { bpf_ktime_get_boot_ns() }
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

/// Makes the refused call fail with `ECONNREFUSED` if the kernel allows a choice; otherwise it
/// fails with `EPERM`.
#[inline(always)]
pub(crate) fn refuse() {
    if is_set(&HAS_SET_RETVAL) {
        // SAFETY: any negative errno will do.
        unsafe { bpf_set_retval(-ECONNREFUSED) };
    }
}
