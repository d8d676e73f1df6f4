//! `sockops`: hands what a connecting socket knows to the socket that accepts it.
//!
//! A connection over loopback has two sockets and one 4-tuple. Before its SYN leaves, the connecting
//! end files its knowledge under the tuple; when the accepting end is established, and before anyone
//! can have accepted it, it takes the entry out. What the connecting end knows is the destination
//! (an application's captured socket) or the client (the agent's delivery).
//!
//! # Minimum kernel version
//!
//! 5.15: `bpf_get_netns_cookie` in this hook.

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_TCP_CONNECT_CB},
    macros::sock_ops,
    programs::SockOpsContext,
};
use aya_log_ebpf::error;
use sluice_abi::{EndpointKind, IpKey, PendingKey, Pod, Role};

use crate::{
    context::SockOps,
    maps::{self, AGENT_SK, PENDING, SK_ORIG},
    storage::Socket,
};

/// The return value is not read for these events.
const DONE: u32 = 1;

#[sock_ops]
pub(crate) fn sluice_sockops(context: SockOpsContext) -> u32 {
    let event = SockOps(context.ops);
    let operation = event.operation();
    // Checked first: the hook runs up to nine times per connection, for every socket of the node.
    let connects = operation == BPF_SOCK_OPS_TCP_CONNECT_CB;
    if !connects && operation != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        return DONE;
    }
    let cookie = event.netns_cookie();
    if let Some(pod) = maps::pod(cookie)
        && let Some(socket) = event.socket()
    {
        let (local, remote) = (event.local(), event.remote());
        let filed = if connects {
            file(PendingKey::new(cookie, local, remote), socket, pod, remote)
        } else {
            take(PendingKey::new(cookie, remote, local), socket)
        };
        if !filed {
            maps::count(pod.slot(), |counters| &mut counters.errors);
            error!(&context, "slot {}: sockops: no room for a connection's addresses", pod.slot());
        }
    }
    DONE
}

/// Files what a connecting socket knows. Returns `false` if there is no room.
#[inline(always)]
fn file(key: PendingKey, socket: Socket, pod: &Pod, (address, port): (IpKey, [u8; 2])) -> bool {
    let endpoint = match (SK_ORIG.get(socket), AGENT_SK.get(socket)) {
        (Some(destination), _) => destination.with_kind(EndpointKind::Original),
        (None, Some(mark)) => match mark.role() {
            Role::Delivery => mark.client(),
            Role::Bypass => return true,
        },
        (None, None) => {
            // An application that connects straight to the agent's listener must not inherit what
            // a failed connection with the same tuple left behind.
            if address.is_loopback() && pod.is_out_port(port) {
                // Nothing to remove is the usual case.
                let _ = PENDING.remove(key);
            }
            return true;
        }
    };
    PENDING.insert(key, endpoint, 0).is_ok()
}

/// Takes what the connecting end filed. Returns `false` if the socket cannot store it.
#[inline(always)]
fn take(key: PendingKey, socket: Socket) -> bool {
    // SAFETY: copied at once. Only this connection's other end writes the entry, and it is done.
    let Some(endpoint) = unsafe { PENDING.get(key) }.copied() else { return true };
    let stored = SK_ORIG.set(socket, endpoint);
    // The entry was there a moment ago; if it has been evicted since, nothing is left to remove.
    let _ = PENDING.remove(key);
    stored
}
