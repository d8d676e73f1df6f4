//! `sk_lookup`: gives connections that reach an enrolled pod to the agent's listener.
//!
//! Attached to each pod's network namespace, and run once per connection. Without a listener the
//! kernel answers with RST, so a pod whose agent is gone refuses connections.
//!
//! # Minimum kernel version
//!
//! 5.9.

use aya_ebpf::{macros::sk_lookup, programs::SkLookupContext};
use aya_log_ebpf::{debug, error, warn};
use sluice_abi::UNATTRIBUTED;
use sluice_ebpf::verdict::inbound::{self, Inbound, Request};

use crate::{
    context::{Assigned, IPPROTO_TCP, SkLookup},
    maps::{self, Maps},
};

const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

#[sk_lookup]
pub(crate) fn sluice_inbound(context: SkLookupContext) -> u32 {
    let packet = SkLookup(context.lookup);
    if packet.protocol() != IPPROTO_TCP {
        return SK_PASS;
    }
    let (remote, local) = if packet.is_v4() {
        packet.addresses_v4()
    } else if packet.is_v6() {
        packet.addresses_v6()
    } else {
        maps::count(UNATTRIBUTED, |counters| &mut counters.inbound_dropped);
        return SK_DROP;
    };
    let (remote_port, local_port) = (packet.remote_port(), packet.local_port());
    let request = Request { remote, remote_port, local, local_port, cpu: maps::cpu() };
    match inbound::judge(&request, &Maps) {
        Inbound::Home => SK_PASS,
        Inbound::Drop(slot) => refuse(&context, slot),
        Inbound::Bypass(slot) => {
            maps::count(slot, |counters| &mut counters.bypassed);
            SK_PASS
        }
        Inbound::Probe(slot) => {
            maps::count(slot, |counters| &mut counters.probes);
            SK_PASS
        }
        Inbound::Assign { index, slot } => match packet.assign(index) {
            Assigned::Taken => {
                maps::count(slot, |counters| &mut counters.inbound);
                debug!(&context, "slot {}: inbound connection to listener {}", slot, index);
                SK_PASS
            }
            Assigned::Nobody => refuse(&context, slot),
            Assigned::Failed => {
                maps::count(slot, |counters| &mut counters.errors);
                error!(&context, "slot {}: listener {} does not take the connection", slot, index);
                SK_DROP
            }
        },
    }
}

#[inline(always)]
fn refuse(context: &SkLookupContext, slot: u32) -> u32 {
    maps::count(slot, |counters| &mut counters.inbound_dropped);
    warn!(context, "slot {}: inbound connection refused, no listener", slot);
    SK_DROP
}
