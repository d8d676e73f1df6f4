//! `bpf_sock_ops`: an event of a TCP socket.

use aya_ebpf::{bindings::bpf_sock_ops, helpers::generated::bpf_get_netns_cookie};
use sluice_abi::IpKey;

use super::AF_INET;
use crate::storage::Socket;

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
        // The kernel keeps this port in network order, in the word's last two bytes.
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
