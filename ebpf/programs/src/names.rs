//! `cgroup/getpeername4`, `cgroup/getpeername6` and their `getsockname` counterparts: show an
//! application the addresses that it expects of its peer and of itself.
//!
//! `accept` runs the peer hooks too. The application that connects sees the destination it asked for,
//! the one that accepts sees the client, and the agent sees the real addresses. A captured socket
//! whose own end is on loopback shows the address from which the agent continues the connection.
//!
//! # Minimum kernel version
//!
//! 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use sluice_abi::{Endpoint, EndpointKind, Family, IpKey};

use crate::{
    context::SockAddr,
    maps::{self, SK_ORIG},
};

/// These hooks only rewrite; the call goes on in any case.
const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn sluice_peer4(context: SockAddrContext) -> i32 {
    let call = SockAddr(context.sock_addr);
    // An IPv6 client's address does not fit an IPv4 socket, which then sees the address that the
    // agent connected from.
    if let Some(peer) = peer(call)
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
    if let Some(peer) = peer(call) {
        call.set_address_v6(&peer.address());
        call.set_port(peer.port());
    }
    ALLOW
}

#[cgroup_sock_addr(getsockname4)]
pub(crate) fn sluice_own4(context: SockAddrContext) -> i32 {
    let call = SockAddr(context.sock_addr);
    if let Some(own) = own(call, SockAddr::address_v4) {
        call.set_address_v4(own);
    }
    ALLOW
}

#[cgroup_sock_addr(getsockname6)]
pub(crate) fn sluice_own6(context: SockAddrContext) -> i32 {
    let call = SockAddr(context.sock_addr);
    if let Some(own) = own(call, SockAddr::address_v6) {
        call.set_address_v6(own);
    }
    ALLOW
}

/// Returns the peer to show, if it is not the socket's real one.
#[inline(always)]
fn peer(call: SockAddr) -> Option<Endpoint> {
    let endpoint = SK_ORIG.get(call.socket()?)?;
    match endpoint.kind()? {
        EndpointKind::Captured | EndpointKind::Client => Some(*endpoint),
        EndpointKind::Original | EndpointKind::Probe => None,
    }
}

/// Returns the local address to show, if it is not the socket's real one.
#[inline(always)]
fn own(call: SockAddr, address: impl FnOnce(SockAddr) -> IpKey) -> Option<&'static IpKey> {
    if SK_ORIG.get(call.socket()?)?.kind()? != EndpointKind::Captured {
        return None;
    }
    let address = address(call);
    let shown = maps::pod(call.netns_cookie())?.primary(Family::of(&address));
    (address.is_loopback() && !shown.is_unspecified()).then_some(shown)
}
