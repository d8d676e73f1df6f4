//! `classifier` on the ingress of a pod's host veth: the boundary that the pod cannot reach.
//!
//! A veth keeps the sending socket with a frame across namespaces, so the agent's packets are told
//! by the mark in their socket's storage.
//!
//! # Minimum kernel version
//!
//! 4.19 for the socket behind a veth; a `tcx` link needs 6.6, before that it is a `clsact` filter.

use aya_ebpf::{macros::classifier, programs::TcContext};
use aya_log_ebpf::warn;
use sluice_abi::UNATTRIBUTED;
use sluice_ebpf::verdict::{
    guard::{self, Frame, Guard, Rule, Sender},
    packet::{self, Malformed, Network},
};

use crate::{
    context::SkBuff,
    maps::{self, AGENT_SK, GUARDED, Maps},
};

/// `TC_ACT_UNSPEC`, which is `TCX_NEXT` too: the next program decides.
const NEXT: i32 = -1;
/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;

#[classifier]
pub(crate) fn sluice_guard(context: TcContext) -> i32 {
    let frame = SkBuff(context.skb.skb);
    // SAFETY: a word that is copied before anything can replace the entry.
    let Some(slot) = unsafe { GUARDED.get(frame.ifindex()) }.copied() else {
        // Attached, but whose pod is it? The entry is there before the program and goes after it.
        maps::count(UNATTRIBUTED, |counters| &mut counters.guard_drops);
        return SHOT;
    };
    match judge(frame, slot) {
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
fn judge(frame: SkBuff, slot: u32) -> Guard {
    let network = match Frame::new(frame.ethertype(), frame.is_vlan_tagged()) {
        Frame::Arp => return Guard::Pass,
        Frame::Ipv4 => read_ipv4(frame),
        Frame::Ipv6 => read_ipv6(frame),
        Frame::Other => Err(Malformed),
    };
    let Ok(network) = network else { return Guard::Drop };
    let rule = match guard::rule(&network, slot, &Maps) {
        Rule::ReadTcp => guard::tcp_rule(read_tcp(frame, &network)),
        rule => rule,
    };
    guard::apply(rule, || sender(frame))
}

#[inline(always)]
fn read_ipv4(frame: SkBuff) -> Result<Network, Malformed> {
    packet::ipv4(&frame.words(0).ok_or(Malformed)?, frame.network_length())
}

#[inline(always)]
fn read_ipv6(frame: SkBuff) -> Result<Network, Malformed> {
    packet::ipv6(&frame.words(0).ok_or(Malformed)?, frame.network_length())
}

#[inline(always)]
fn read_tcp(frame: SkBuff, network: &Network) -> Result<packet::Segment, Malformed> {
    packet::tcp(&frame.words(network.header_length).ok_or(Malformed)?, network.length)
}

#[inline(always)]
fn sender(frame: SkBuff) -> Sender {
    let Some(full) = frame.socket() else { return Sender::Other };
    match full.socket() {
        Some(socket) if AGENT_SK.get(socket).is_some() => Sender::Agent,
        _ if full.is_udp() => Sender::Udp,
        _ => Sender::Other,
    }
}
