//! Finds the other ends of a pod's veth pairs, where the guard sits.

use std::os::fd::{AsFd, AsRawFd};

use netlink_sys::protocols::NETLINK_ROUTE;

use crate::{
    Error, Netns, Result,
    netlink::{Channel, Message, attributes},
};

/// Kinds of link whose packets come out in the pod again: in its own stack, or on another of its
/// links. That holds only if the link's lower device is in the pod too; if it is not,
/// `IFLA_LINK_NETNSID` says so. Kernels with the tunnel modules put the fallback devices `tunl0`,
/// `sit0`, `gre0`... into every namespace, so these are nothing unusual.
const INSIDE: [&str; 16] = [
    "bridge",
    "dummy",
    "erspan",
    "gre",
    "gretap",
    "ifb",
    "ip6gre",
    "ip6gretap",
    "ip6tnl",
    "ipip",
    "ipvlan",
    "macvlan",
    "sit",
    "vlan",
    "vti",
    "vti6",
];

// Numbers of <linux/rtnetlink.h>, <linux/if_link.h> and <linux/net_namespace.h>.
const RTM_GETLINK: u16 = 18;
const RTM_GETNSID: u16 = 90;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_LINK_NETNSID: u16 = 37;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// Sizes of `struct ifinfomsg` and of a padded `struct rtgenmsg`, which precede the attributes.
const IFINFOMSG: usize = 16;
const RTGENMSG: usize = 4;
const IFF_LOOPBACK: u32 = 8;

/// One veth pair between a pod and the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VethLink {
    /// Name of the end inside the pod.
    pub name: String,
    /// Index of the other end, in the agent's namespace.
    pub host_ifindex: u32,
}

struct Link {
    index: u32,
    flags: u32,
    name: String,
    kind: String,
    /// Index of the device that the link is paired with or sits on.
    lower: Option<u32>,
    /// Number of the lower device's namespace, if it is another one.
    lower_namespace: Option<i32>,
}

/// Returns the veth pairs that connect `pod` to the calling thread's namespace. Each is checked from
/// both ends: the other end exists here, is a veth, and points back to that very link in that very
/// namespace.
///
/// # Errors
///
/// [`Error::NotVeth`] or [`Error::PeerElsewhere`] for a link, up or down, through which packets could
/// leave the pod without passing one of these pairs.
pub fn host_peers(pod: &Netns) -> Result<Vec<VethLink>> {
    let mut outside = Channel::here(NETLINK_ROUTE)?;
    exits(pod)?.into_iter().map(|link| host_peer(&mut outside, pod, link)).collect()
}

/// Returns whether a veth pair ties `pod` to the namespace of the calling thread, whatever other links it has. A pod
/// can give a namespace of its own making any address, but not such a pair.
///
/// # Errors
///
/// When netlink fails.
pub fn is_tied_here(pod: &Netns) -> Result<bool> {
    let mut outside = Channel::here(NETLINK_ROUTE)?;
    for link in exits(pod)? {
        match host_peer(&mut outside, pod, link) {
            Ok(_) => return Ok(true),
            Err(Error::NotVeth { .. } | Error::PeerElsewhere { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Returns whether the namespace of the calling thread has an interface with this index.
///
/// # Errors
///
/// When netlink fails.
pub fn is_here(ifindex: u32) -> Result<bool> {
    Ok(link_here(&mut Channel::here(NETLINK_ROUTE)?, ifindex)?.is_some())
}

/// The links by which packets may leave `pod`.
fn exits(pod: &Netns) -> Result<Vec<Link>> {
    let mut inside = Channel::inside(pod, NETLINK_ROUTE)?;
    let request = Message { kind: RTM_GETLINK, body: vec![0; IFINFOMSG] };
    let links = inside.dump("list a pod's links", &request)?;
    Ok(links.iter().filter_map(Link::parse).filter(Link::may_lead_out).collect())
}

fn host_peer(outside: &mut Channel, pod: &Netns, link: Link) -> Result<VethLink> {
    if link.kind != "veth" {
        let kind = if link.kind.is_empty() { "device".to_owned() } else { link.kind };
        return Err(Error::NotVeth { link: link.name, kind });
    }
    let peer = match link.lower {
        Some(index) => link_here(outside, index)?,
        None => None,
    };
    let points_back = |peer: &Link| {
        peer.kind == "veth" && peer.lower == Some(link.index) && peer.lower_namespace.is_some()
    };
    let Some(peer) = peer.filter(points_back) else {
        return Err(Error::PeerElsewhere { link: link.name });
    };
    if peer.lower_namespace != namespace_number(outside, pod)? {
        return Err(Error::PeerElsewhere { link: link.name });
    }
    Ok(VethLink { name: link.name, host_ifindex: peer.index })
}

/// The link with this index in the channel's namespace.
fn link_here(channel: &mut Channel, index: u32) -> Result<Option<Link>> {
    let mut body = vec![0; IFINFOMSG];
    if let Some(field) = body.get_mut(4..8) {
        field.copy_from_slice(&index.to_ne_bytes());
    }
    match channel.ask(&Message { kind: RTM_GETLINK, body }) {
        Ok(answers) => Ok(answers.first().and_then(Link::parse)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(source) => Err(Error::Netlink { what: "read a host link", source }),
    }
}

/// Returns the number by which the channel's namespace knows `pod`; links that lead there carry it.
fn namespace_number(channel: &mut Channel, pod: &Netns) -> Result<Option<i32>> {
    let mut body = vec![0; RTGENMSG];
    body.extend_from_slice(&8_u16.to_ne_bytes());
    body.extend_from_slice(&NETNSA_FD.to_ne_bytes());
    body.extend_from_slice(&pod.as_fd().as_raw_fd().to_ne_bytes());
    let answers = channel
        .ask(&Message { kind: RTM_GETNSID, body })
        .map_err(|source| Error::Netlink { what: "read a namespace's number", source })?;
    let number = |(kind, value): (u16, &[u8])| {
        (kind == NETNSA_NSID).then(|| value.first_chunk().copied().map(i32::from_ne_bytes))?
    };
    let assigned = |number: &i32| *number >= 0;
    Ok(answers
        .iter()
        .flat_map(|answer| answer.attributes(RTGENMSG))
        .find_map(number)
        .filter(assigned))
}

// === impl Link ===

impl Link {
    fn parse(message: &Message) -> Option<Self> {
        let mut link = Self {
            index: message.word(4)?,
            flags: message.word(8)?,
            name: String::new(),
            kind: String::new(),
            lower: None,
            lower_namespace: None,
        };
        for (kind, value) in message.attributes(IFINFOMSG) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_LINK => link.lower = value.first_chunk().copied().map(u32::from_ne_bytes),
                IFLA_LINK_NETNSID => {
                    link.lower_namespace = value.first_chunk().copied().map(i32::from_ne_bytes);
                }
                IFLA_LINKINFO => {
                    let kind = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                    link.kind = kind.map(|(_, name)| text(name)).unwrap_or_default();
                }
                _ => {}
            }
        }
        Some(link)
    }

    /// Whether packets sent on this link may come out anywhere but in the pod itself.
    fn may_lead_out(&self) -> bool {
        let inside = self.lower_namespace.is_none()
            && (self.kind == "veth" || INSIDE.contains(&self.kind.as_str()));
        self.flags & IFF_LOOPBACK == 0 && !inside
    }
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests;
