//! `bpf_sk_lookup`: a packet in search of a socket.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_sk_lookup,
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release},
};
use sluice_abi::IpKey;

use super::{AF_INET, AF_INET6, port_of_low_half};
use crate::maps::LISTENERS;

const SK_LOOKUP_REPLACE: u64 = 1;
const SK_LOOKUP_NO_REUSEPORT: u64 = 2;

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

    /// The client's port, in network order.
    #[inline(always)]
    pub(crate) fn remote_port(self) -> [u8; 2] {
        port_of_low_half(word!(bpf_sk_lookup, self.0, remote_port))
    }

    /// The requested port, in network order.
    #[inline(always)]
    pub(crate) fn local_port(self) -> [u8; 2] {
        // The kernel keeps only this port in host byte order.
        let [.., a, b] = word!(bpf_sk_lookup, self.0, local_port).to_be_bytes();
        [a, b]
    }

    /// Gives the packet to the listener at `index`. Returns whether there is one and whether it
    /// took the packet.
    #[inline(always)]
    pub(crate) fn assign(self, index: u32) -> Assigned {
        let map = ptr::from_ref(&LISTENERS).cast_mut().cast();
        // SAFETY: the map's key is a `u32`; the reference that comes back is released below.
        let listener = unsafe { bpf_map_lookup_elem(map, ptr::from_ref(&index).cast()) };
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

/// The result of giving a packet to a listener.
pub(crate) enum Assigned {
    Taken,
    Nobody,
    Failed,
}
