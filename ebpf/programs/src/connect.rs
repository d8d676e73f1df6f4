//! `cgroup/connect4` and `cgroup/connect6`: point an enrolled pod's connections at the agent.
//!
//! # Minimum kernel version
//!
//! 5.8: socket storage and `ctx->sk` in these hooks.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use aya_log_ebpf::{debug, error, warn};
use sluice_abi::{Endpoint, EndpointKind, Family, IpKey, Pod};
use sluice_ebpf::verdict::outbound::{self, Outbound};

use crate::{
    context::{self, IPPROTO_TCP, SockAddr},
    maps::{self, AGENT_SK, Maps, SK_ORIG},
    probe,
};

const LOOPBACK_V4: IpKey = IpKey::from_v4_word(u32::from_ne_bytes([127, 0, 0, 1]));
const LOOPBACK_V6: IpKey = IpKey::from_words([0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])]);

/// Return value of a cgroup hook that lets the call go on.
const ALLOW: i32 = 1;
/// Return value of a cgroup hook that fails the call.
const FAIL: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub(crate) fn sluice_connect4(context: SockAddrContext) -> i32 {
    let call = SockAddr(context.sock_addr);
    if call.protocol() != IPPROTO_TCP {
        return ALLOW;
    }
    let cookie = call.netns_cookie();
    let Some(pod) = maps::pod(cookie) else {
        probe::recognise(call, cookie, call.address_v4());
        return ALLOW;
    };
    match steer(&context, call, call.address_v4(), pod) {
        Steered::Leave => ALLOW,
        Steered::Refuse => fail(),
        Steered::To(port) => {
            if call.is_unbound_v4() && !call.bind_v4(pod.primary(Family::V4)) {
                count_error(&context, pod, "cannot bind to the pod's address");
            }
            call.set_address_v4(&LOOPBACK_V4);
            call.set_port(port);
            ALLOW
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn sluice_connect6(context: SockAddrContext) -> i32 {
    let call = SockAddr(context.sock_addr);
    if call.protocol() != IPPROTO_TCP {
        return ALLOW;
    }
    let cookie = call.netns_cookie();
    // A mapped destination is IPv4 on the wire and in every map.
    let destination = call.address_v6();
    let Some(pod) = maps::pod(cookie) else {
        probe::recognise(call, cookie, destination);
        return ALLOW;
    };
    match steer(&context, call, destination, pod) {
        Steered::Leave => ALLOW,
        Steered::Refuse => fail(),
        Steered::To(port) => {
            match Family::of(&destination) {
                Family::V4 => {
                    if call.is_unbound_v6() && !call.bind_v6(pod.primary(Family::V4)) {
                        count_error(&context, pod, "cannot bind to the pod's address");
                    }
                    call.set_address_v6(&LOOPBACK_V4);
                }
                // The application's end stays on loopback. The kernel sends no reset from another
                // address to `::1`, so otherwise the agent would not learn that the application has
                // closed.
                Family::V6 => call.set_address_v6(&LOOPBACK_V6),
            }
            call.set_port(port);
            ALLOW
        }
    }
}

/// What the hook still has to do with a call.
enum Steered {
    Leave,
    Refuse,
    To([u8; 2]),
}

/// Judges the call, counts it, and readies the socket for the agent's listener.
#[inline(always)]
fn steer(context: &SockAddrContext, call: SockAddr, destination: IpKey, pod: &Pod) -> Steered {
    let Some(socket) = call.socket() else {
        count_error(context, pod, "no socket in the call");
        return Steered::Refuse;
    };
    if AGENT_SK.get(socket).is_some() {
        return Steered::Leave;
    }
    match outbound::judge(&destination, call.port(), pod, maps::cpu(), &Maps) {
        // A socket can connect again after a captured connection; what is stored for it is stale
        // then.
        Outbound::Home => {
            forget(call);
            Steered::Leave
        }
        Outbound::Direct => {
            forget(call);
            maps::count(pod.slot(), |counters| &mut counters.direct);
            Steered::Leave
        }
        Outbound::Bypass => {
            forget(call);
            maps::count(pod.slot(), |counters| &mut counters.bypassed);
            Steered::Leave
        }
        Outbound::Deny => {
            maps::count(pod.slot(), |counters| &mut counters.denied);
            warn!(context, "slot {}: refused, no listener for this family", pod.slot());
            Steered::Refuse
        }
        Outbound::Capture(port) => {
            if !remember(call, Endpoint::new(destination, call.port(), EndpointKind::Captured)) {
                count_error(context, pod, "cannot remember the destination");
                return Steered::Refuse;
            }
            // The listener is on loopback, out of reach for a socket bound to another device.
            if call.is_bound_to_device() && !call.unbind_device() {
                count_error(context, pod, "cannot unbind from the device");
                return Steered::Refuse;
            }
            maps::count(pod.slot(), |counters| &mut counters.captured);
            let [_, _, _, last] = destination.words();
            debug!(
                context,
                "slot {}: captured, destination ends in {:x}, port {}",
                pod.slot(),
                u32::from_be(last),
                u16::from_be_bytes(call.port())
            );
            Steered::To(port)
        }
    }
}

/// Stores the destination with the socket, and with the MPTCP socket above it, which is the one
/// that `getpeername` asks about. Returns whether there was room.
#[inline(always)]
fn remember(call: SockAddr, destination: Endpoint) -> bool {
    let Some(socket) = call.socket() else { return false };
    if let Some(mptcp) = call.mptcp_socket()
        && !SK_ORIG.set(mptcp, destination)
    {
        return false;
    }
    SK_ORIG.set(socket, destination)
}

#[inline(always)]
fn forget(call: SockAddr) {
    if let Some(mptcp) = call.mptcp_socket() {
        SK_ORIG.forget(mptcp);
    }
    if let Some(socket) = call.socket() {
        SK_ORIG.forget(socket);
    }
}

#[inline(always)]
fn fail() -> i32 {
    context::refuse();
    FAIL
}

#[inline(always)]
fn count_error(context: &SockAddrContext, pod: &Pod, what: &'static str) {
    maps::count(pod.slot(), |counters| &mut counters.errors);
    error!(context, "slot {}: connect: {}", pod.slot(), what);
}
