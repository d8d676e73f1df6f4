//! The kubelet's probes: its sockets are marked when they connect, and their packets are recognised
//! by the mark.
//!
//! `classifier` on the egress of the host veth of a pod that declares probe ports. Without it, or where
//! a network plugin routes packets around it, a probe is an ordinary connection, which the agent judges
//! as plaintext.
//!
//! # Minimum kernel version
//!
//! 5.8: `bpf_ktime_get_boot_ns`; otherwise as for the guard.

use aya_ebpf::{macros::classifier, programs::TcContext};
use aya_log_ebpf::warn;
use sluice_abi::{
    Endpoint, EndpointKind, Exemptions, IpKey, PortKey, PortUse, Probe, ProbeKey, Settings,
    UNATTRIBUTED,
};
use sluice_ebpf::verdict::{
    guard::Frame,
    mesh::Mesh,
    packet::{Malformed, Network},
    probe::{self, Arrival, Probing},
};

use crate::{
    context::{SkBuff, SockAddr, boot_time, task_cgroup, task_process},
    guard::{NEXT, SHOT, read_ipv4, read_ipv6, read_next_header, read_tcp},
    maps::{self, GUARDED, Maps, PROBES, SETTINGS, SK_ORIG},
};

/// Marks the kubelet's socket if it connects to a pod's probe port, and clears an earlier mark if
/// not. Other sockets are left alone.
#[inline(always)]
pub(crate) fn recognise(call: SockAddr, cookie: u64, destination: IpKey) {
    let Some(settings) = SETTINGS.get(0) else { return };
    if !settings.is_node(cookie) || !is_kubelet(settings) {
        return;
    }
    let Some(socket) = call.socket() else { return };
    if may_probe(&destination, call.port()) {
        // If there is no memory for the mark, the probe is treated as any plaintext connection.
        let _ = SK_ORIG.set(socket, Endpoint::new(destination, call.port(), EndpointKind::Probe));
    } else {
        SK_ORIG.forget(socket);
    }
}

#[inline(always)]
fn is_kubelet(settings: &Settings) -> bool {
    settings.is_kubelet(task_cgroup, task_process, boot_time)
}

#[inline(always)]
fn may_probe(destination: &IpKey, port: [u8; 2]) -> bool {
    let Some(pod) = Maps.local(destination) else { return false };
    pod.exemptions.has(Exemptions::PROBES)
        && Maps.is_exempt(&PortKey::new(pod.slot, PortUse::Probe, port))
}

#[classifier]
pub(crate) fn sluice_probe(context: TcContext) -> i32 {
    let frame = SkBuff(context.skb.skb);
    let verdict = match judge(frame) {
        Probing::Pass => return NEXT,
        Probing::Admit(key) => admit(frame, key),
        Probing::Drop => SHOT,
    };
    if verdict == SHOT {
        let slot = slot(frame).unwrap_or(UNATTRIBUTED);
        maps::count(slot, |counters| &mut counters.guard_drops);
        warn!(&context, "slot {}: a packet that claimed to be a probe\'s was stopped", slot);
    }
    verdict
}

#[inline(always)]
fn judge(frame: SkBuff) -> Probing {
    let network = match Frame::new(frame.ethertype(), frame.is_vlan_tagged()) {
        Frame::Arp => return Probing::Pass,
        Frame::Ipv4 => read_ipv4(frame),
        Frame::Ipv6 => read_ipv6(frame),
        Frame::Other if probe::may_hide_ip(frame.ethertype(), frame.is_vlan_tagged()) => {
            Err(Malformed)
        }
        Frame::Other => return Probing::Pass,
    };
    let Ok(network) = network else { return Probing::Drop };
    let arrival = probe::classify(
        &network,
        || read_tcp(frame, &network),
        || read_next_header(frame, &network),
    );
    probe::judge(arrival, || is_marked(frame, &network, arrival), is_known)
}

/// Whether the frame comes from a socket that is marked as the kubelet's for this very destination.
#[inline(always)]
fn is_marked(frame: SkBuff, network: &Network, arrival: Arrival) -> bool {
    let Some(socket) = frame.socket().and_then(|full| full.socket()) else { return false };
    let Some(mark) = SK_ORIG.get(socket) else { return false };
    let port_fits = match arrival {
        Arrival::Opens(key) => key.local_port() == mark.port(),
        Arrival::Carries(_) | Arrival::Other | Arrival::Malformed => true,
    };
    mark.kind() == Some(EndpointKind::Probe) && mark.address() == network.destination && port_fits
}

/// Whether the kubelet has opened the connection recently.
#[inline(always)]
fn is_known(key: &ProbeKey) -> bool {
    // SAFETY: copied at once; a replaced entry is as good as the one it replaces.
    unsafe { PROBES.get(key) }.copied().is_some_and(|probe| probe.is_fresh(maps::now()))
}

/// Records the connection, so that the pod leaves it to the application. If there is no room, it
/// goes on as an ordinary connection, which the agent judges.
#[inline(always)]
fn admit(frame: SkBuff, key: ProbeKey) -> i32 {
    let Some(slot) = slot(frame) else { return SHOT };
    let probe = Probe { opened_at: maps::now(), slot, padding: 0 };
    // The any-port entry comes first: once a connection is known, its fragments must be checked
    // too.
    if PROBES.insert(key.to_any_port(), probe, 0).is_ok() {
        let _ = PROBES.insert(key, probe, 0);
    }
    NEXT
}

#[inline(always)]
fn slot(frame: SkBuff) -> Option<u32> {
    // SAFETY: copied before anything can replace the entry.
    unsafe { GUARDED.get(frame.ifindex()) }.map(|pod| pod.slot)
}
