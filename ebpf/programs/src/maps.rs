//! The maps, and the few ways in which hooks use them. Sizes here are defaults; the loader sets them.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{
        Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockMap, lpm_trie::Key as Prefix,
    },
    helpers::{bpf_get_smp_processor_id, generated::bpf_ktime_get_ns},
    macros::btf_map,
};
use sluice_abi::{
    AgentSocket, Counters, DirectKey, Endpoint, Guarded, IpKey, Local, PendingKey, Pod, PodNetwork,
    PortKey, Probe, ProbeKey, Settings,
};
use sluice_ebpf::verdict::mesh::Mesh;

use crate::storage::{INHERITED, PER_SOCKET, SkStorage};

#[btf_map]
pub(crate) static PODS: HashMap<u64, Pod, 1024> = HashMap::new();
// Not preallocated: the map is sized for the largest mesh, and most meshes are small.
#[btf_map]
pub(crate) static PEERS: HashMap<IpKey, u32, 65536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static LOCAL: HashMap<IpKey, Local, 4096> = HashMap::new();
#[btf_map]
pub(crate) static GUARDED: HashMap<u32, Guarded, 4096> = HashMap::new();
// These three are not preallocated: they are sized for the most exemptions allowed, and few pods or
// nodes have any.
#[btf_map]
pub(crate) static PORTS: HashMap<PortKey, u32, 65536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static NETWORKS: LpmTrie<PodNetwork, u32, 16384> = LpmTrie::new();
#[btf_map]
pub(crate) static DIRECT: HashMap<DirectKey, u32, 16384, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
pub(crate) static PROBES: LruHashMap<ProbeKey, Probe, 8192> = LruHashMap::new();
#[btf_map]
pub(crate) static SK_ORIG: SkStorage<Endpoint, PER_SOCKET> = SkStorage::new();
#[btf_map]
pub(crate) static AGENT_SK: SkStorage<AgentSocket, INHERITED> = SkStorage::new();
#[btf_map]
pub(crate) static PENDING: LruHashMap<PendingKey, Endpoint, 65536> = LruHashMap::new();
#[btf_map]
pub(crate) static LISTENERS: SockMap<16384> = SockMap::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Counters, 1025> = PerCpuArray::new();
#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();

/// The maps as the verdicts see them.
pub(crate) struct Maps;

impl Mesh for Maps {
    #[inline(always)]
    fn is_peer(&self, address: &IpKey) -> bool {
        PEERS.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn capture_all(&self) -> bool {
        SETTINGS.get(0).is_some_and(Settings::capture_all)
    }

    #[inline(always)]
    fn local(&self, address: &IpKey) -> Option<Local> {
        // SAFETY: copied at once; no hook writes this map, and user space replaces whole entries.
        unsafe { LOCAL.get(address) }.copied()
    }

    #[inline(always)]
    fn is_exempt(&self, port: &PortKey) -> bool {
        PORTS.get_ptr(port).is_some()
    }

    #[inline(always)]
    fn is_exempt_network(&self, slot: u32, address: &IpKey) -> bool {
        let address = Prefix::new(PodNetwork::WHOLE, PodNetwork::new(slot, *address));
        NETWORKS.get(&address).is_some()
    }

    #[inline(always)]
    fn is_direct(&self, address: &IpKey, port: [u8; 2]) -> bool {
        SETTINGS.get(0).is_some_and(Settings::has_direct)
            && DIRECT.get_ptr(DirectKey::new(*address, port)).is_some()
    }

    #[inline(always)]
    fn is_probe(&self, connection: &ProbeKey, slot: u32) -> bool {
        // SAFETY: copied at once; a hook that replaces the entry writes the same slot.
        let Some(probe) = unsafe { PROBES.get(connection) }.copied() else { return false };
        probe.slot == slot && probe.is_fresh(now())
    }
}

/// The monotonic clock, in nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: only reads a clock, which any hook may do at any time.
    unsafe { bpf_ktime_get_ns() }
}

/// The enrolled pod of a network namespace.
#[inline(always)]
pub(crate) fn pod(cookie: u64) -> Option<&'static Pod> {
    // SAFETY: no hook writes this map; user space replaces whole entries, and RCU keeps a replaced
    // one for this run.
    unsafe { PODS.get(cookie) }
}

/// Increments a counter of the pod in `slot`.
#[inline(always)]
pub(crate) fn count(slot: u32, counter: impl FnOnce(&mut Counters) -> &mut u64) {
    if let Some(counters) = COUNTERS.get_ptr_mut(slot) {
        // SAFETY: this CPU's own copy; at worst, a hook that interrupts this one loses a count.
        let counter = counter(unsafe { &mut *counters });
        *counter = counter.wrapping_add(1);
    }
}

/// The CPU that runs this hook.
#[inline(always)]
pub(crate) fn cpu() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { bpf_get_smp_processor_id() }
}
