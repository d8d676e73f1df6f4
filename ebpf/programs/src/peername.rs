//! `cgroup/getpeername4` and `cgroup/getpeername6`: show an application whom it talks to.
//!
//! `accept` asks these hooks as well. The application at the near end sees the destination it asked
//! for, the one at the far end the client, and the agent sees what is there.
//!
//! # Minimum kernel version
//!
//! 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use sluice_abi::{Endpoint, EndpointKind};

use crate::{context::SockAddr, maps::SK_ORIG};

/// These hooks only rewrite; the call goes on in any case.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn sluice_peer4(context: SockAddrContext) -> i32 {
    let call = SockAddr(context.sock_addr);
    // An IPv6 client cannot be told to an IPv4 socket, which then sees the pod's own address.
    if let Some(peer) = shown(call)
        && peer.address().is_v4()
    {
        call.set_address_v4(&peer.address());
        call.set_port(peer.port());
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn sluice_peer6(context: SockAddrContext) -> i32 {
    let call = SockAddr(context.sock_addr);
    if let Some(peer) = shown(call) {
        call.set_address_v6(&peer.address());
        call.set_port(peer.port());
    }
    ALLOW
}

/// The peer to show, if it is another than the socket's.
#[inline(always)]
fn shown(call: SockAddr) -> Option<Endpoint> {
    let endpoint = SK_ORIG.get(call.socket()?)?;
    match endpoint.kind()? {
        EndpointKind::Captured | EndpointKind::Client => Some(*endpoint),
        EndpointKind::Original | EndpointKind::Probe => None,
    }
}
