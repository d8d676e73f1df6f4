//! Chooses the endpoint of a service that takes a connection.

use std::net::{IpAddr, SocketAddr};

use crate::{Endpoint, Prefer, Routing, Service};

/// The client of a service, as far as the choice depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The client's address, by which services with affinity recognise it.
    pub address: IpAddr,
    /// Name of its node.
    pub node: &'a str,
    /// Zone of its node, where known.
    pub zone: Option<&'a str>,
}

/// Why no endpoint takes a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// The service does not list the port.
    #[error("does not offer port {0}")]
    Port(u16),
    /// No endpoint for this port and address family is ready.
    #[error("has no ready endpoint for this port and address family")]
    Ready,
    /// Endpoints are ready, but none on the client's node, and the service allows no others.
    #[error("has no ready endpoint on this node, and its internalTrafficPolicy is Local")]
    OnNode,
}

/// Chooses among the endpoints that `usable` admits: ready ones, or while there is none, those that still
/// serve. `turn` spreads connections evenly; a sticky service
/// goes by the client's address instead.
pub(crate) fn choose<'a>(
    service: &Service,
    endpoints: &'a [Endpoint],
    target: SocketAddr,
    client: &Client<'_>,
    turn: usize,
    usable: impl Fn(&Endpoint) -> bool,
) -> Result<&'a Endpoint, Lack> {
    let port = target.port();
    if !service.ports.iter().any(|offered| offered.port == port) {
        return Err(Lack::Port(port));
    }
    let Routing { prefer, node_only, sticky } = service.routing;
    let fits = |endpoint: &&Endpoint| {
        (endpoint.ready || endpoint.serving)
            && endpoint.address.is_ipv6() == target.is_ipv6()
            && endpoint.target_port(port).is_some()
            && usable(endpoint)
    };
    let mut able: Vec<&Endpoint> = endpoints.iter().filter(fits).collect();
    if able.is_empty() {
        return Err(Lack::Ready);
    }
    let on_node = |endpoint: &&Endpoint| endpoint.node.as_deref() == Some(client.node);
    let in_zone =
        |endpoint: &&Endpoint| client.zone.is_some() && endpoint.zone.as_deref() == client.zone;
    if node_only {
        able.retain(on_node);
    }
    // Only now, as kube-proxy does: that one is ready elsewhere is no help to a node that must do without.
    if able.iter().any(|endpoint| endpoint.ready) {
        able.retain(|endpoint| endpoint.ready);
    }
    if !node_only {
        let near = match prefer {
            Prefer::Any => None,
            Prefer::SameZone => narrowed(&able, in_zone),
            Prefer::SameNode => narrowed(&able, on_node).or_else(|| narrowed(&able, in_zone)),
        };
        able = near.unwrap_or(able);
    }
    let chosen = if sticky {
        able.into_iter().max_by_key(|endpoint| weight(client.address, endpoint.address))
    } else {
        turn.checked_rem(able.len()).and_then(|index| able.get(index).copied())
    };
    chosen.ok_or(Lack::OnNode)
}

/// Returns the endpoints that are `near`, or `None` if there are none.
fn narrowed<'a>(
    able: &[&'a Endpoint],
    near: impl Fn(&&Endpoint) -> bool,
) -> Option<Vec<&'a Endpoint>> {
    let near: Vec<_> = able.iter().copied().filter(near).collect();
    (!near.is_empty()).then_some(near)
}

/// Rendezvous hashing (Thaler and Ravishankar, 1998): the endpoint with the greatest weight takes the client. When an
/// endpoint comes or goes, only the clients that it wins or had move. Every node reaches the same decision without a
/// table, so the service's affinity time-out is not needed.
fn weight(client: IpAddr, endpoint: IpAddr) -> (u64, IpAddr) {
    let bits = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    let mut state = 0;
    for half in [bits(client), bits(endpoint)].map(halves).into_iter().flatten() {
        state = mixed(state ^ half);
    }
    // The address settles equal weights, so nodes agree on those too.
    (state, endpoint)
}

/// Returns the lower half, then the upper.
fn halves(bits: u128) -> [u64; 2] {
    [bits & u128::from(u64::MAX), bits >> 64].map(|half| u64::try_from(half).unwrap_or_default())
}

/// The finalizer of `SplitMix64` (Steele, Lea and Flood, 2014).
fn mixed(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
