//! The addresses that a namespace really has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::{
    Netns, Result,
    netlink::{Channel, Message},
};

// Numbers of <linux/rtnetlink.h> and <linux/if_addr.h>.
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// Size of `struct ifaddrmsg`, which precedes the attributes.
const IFADDRMSG: usize = 8;

/// Returns the addresses by which others can reach `netns`: neither loopback nor link-local ones.
pub fn addresses(netns: &Netns) -> Result<Vec<IpAddr>> {
    let request = Message { kind: RTM_GETADDR, body: vec![0; IFADDRMSG] };
    let answers =
        Channel::inside(netns, NETLINK_ROUTE)?.dump("list a pod's addresses", &request)?;
    Ok(answers.iter().filter_map(address_of).filter(reachable).collect())
}

/// Reads one address. On a point-to-point link `IFA_ADDRESS` is the other end and `IFA_LOCAL` ours;
/// IPv6 has only the former unless there is a peer.
fn address_of(message: &Message) -> Option<IpAddr> {
    let of_kind = |wanted| {
        message.attributes(IFADDRMSG).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    };
    let value = of_kind(IFA_LOCAL).or_else(|| of_kind(IFA_ADDRESS))?;
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    <[u8; 16]>::try_from(value).ok().map(|octets| Ipv6Addr::from(octets).into())
}

fn reachable(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    !address.is_loopback() && !link_local
}

#[cfg(test)]
mod tests;
