//! `classifier` on the ingress of a pod's host veth: the boundary, out of the pod's reach.
//!
//! A frame that crosses a veth keeps its sending socket, even into another namespace. So the
//! agent's packets are recognised by the mark in their socket's storage.
//!
//! # Minimum kernel version
//!
//! 4.19 for the sending socket behind a veth. A `tcx` link needs 6.6; before that the program is a
//! `clsact` filter.

use aya_ebpf::{macros::classifier, programs::TcContext};
use aya_log_ebpf::warn;
use sluice_abi::{Guarded, UNATTRIBUTED};
use sluice_ebpf::verdict::{
    guard::{self, Frame, Guard, Rule, Sender},
    packet::{self, Malformed, Network, protocol},
};

use crate::{
    context::SkBuff,
    maps::{self, AGENT_SK, GUARDED, Maps},
};

/// `TC_ACT_UNSPEC`, the same value as `TCX_NEXT`: the next program decides.
pub(crate) const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
pub(crate) const SHOT: i32 = 2;

#[classifier]
pub(crate) fn sluice_guard(context: TcContext) -> i32 {
    let frame = SkBuff(context.skb.skb);
    // SAFETY: two words that are copied before anything can replace the entry.
    let Some(pod) = unsafe { GUARDED.get(frame.ifindex()) }.copied() else {
        // Should not happen: the pod's entry is there before this program is attached and goes
        // after it.
        maps::count(UNATTRIBUTED, |counters| &mut counters.guard_drops);
        return SHOT;
    };
    let slot = pod.slot;
    match judge(frame, &pod) {
        Guard::Pass => NEXT,
        Guard::PassUdp => {
            maps::count(slot, |counters| &mut counters.udp);
            NEXT
        }
        Guard::Drop => {
            maps::count(slot, |counters| &mut counters.guard_drops);
            warn!(
                &context,
                "slot {}: guard stopped a packet of {} bytes",
                slot,
                frame.network_length()
            );
            SHOT
        }
    }
}

#[inline(always)]
fn judge(frame: SkBuff, pod: &Guarded) -> Guard {
    let network = match Frame::new(frame.ethertype(), frame.is_vlan_tagged()) {
        Frame::Arp => return Guard::Pass,
        Frame::Ipv4 => read_ipv4(frame),
        Frame::Ipv6 => read_ipv6(frame),
        Frame::Other => Err(Malformed),
    };
    let Ok(network) = network else { return Guard::Drop };
    let rule = match guard::rule(&network, pod.slot, &Maps) {
        Rule::ReadTcp => guard::tcp_rule(read_tcp(frame, &network)),
        Rule::ReadFragment => guard::fragment_rule(read_next_header(frame, &network)),
        rule => rule,
    };
    match guard::apply(rule, || sender(frame)) {
        Guard::Drop if is_exempt(frame, &network, pod) => Guard::Pass,
        verdict => verdict,
    }
}

#[inline(always)]
fn is_exempt(frame: SkBuff, network: &Network, pod: &Guarded) -> bool {
    let segment = if network.protocol == protocol::TCP && !network.fragment {
        match read_tcp(frame, network) {
            Ok(segment) => Some(segment),
            Err(Malformed) => return false,
        }
    } else {
        None
    };
    guard::is_exempt(network, segment, pod, || sender(frame), &Maps)
}

#[inline(always)]
pub(crate) fn read_ipv4(frame: SkBuff) -> Result<Network, Malformed> {
    packet::ipv4(&frame.words(0).ok_or(Malformed)?, frame.network_length())
}

#[inline(always)]
pub(crate) fn read_ipv6(frame: SkBuff) -> Result<Network, Malformed> {
    packet::ipv6(&frame.words(0).ok_or(Malformed)?, frame.network_length())
}

#[inline(always)]
pub(crate) fn read_tcp(frame: SkBuff, network: &Network) -> Result<packet::Segment, Malformed> {
    packet::tcp(&frame.words(network.header_length).ok_or(Malformed)?, network.length)
}

/// The next header that the first IPv6 extension header names, in its first byte.
#[inline(always)]
pub(crate) fn read_next_header(frame: SkBuff, network: &Network) -> Option<u8> {
    let [first, ..] = frame.words::<1>(network.header_length)?.first()?.to_ne_bytes();
    Some(first)
}

#[inline(always)]
fn sender(frame: SkBuff) -> Sender {
    let Some(full) = frame.socket() else { return Sender::Other };
    match full.socket() {
        Some(socket) if AGENT_SK.get(socket).is_some() => Sender::Agent,
        _ if full.is_udp() => Sender::Udp,
        _ if full.is_tcp() => Sender::Tcp,
        _ => Sender::Other,
    }
}
