//! The devices, addresses and routes of a world, as batches for `ip`.

use std::{
    fmt::Write as _,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Result, ensure};

use super::{Family, LINK, NodeName, POD_DEVICE};
use crate::Netns;

/// The gateway of every pod, on the node's end of its veth (as Calico and others do).
const GATEWAY4: &str = "169.254.1.1";
const GATEWAY6: &str = "fe80::1";
/// The hardware address of every gateway, the same as Calico's; locally administered, unicast.
pub(super) const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// The bridge of a node, in worlds where the pods of a node share a subnet.
const BRIDGE: &str = "br0";
/// The number of the first pod of a node; number 1 is the bridge's.
const FIRST_POD: u8 = 2;
/// The number from which additional addresses count up.
const FIRST_EXTRA: u8 = 128;

pub(super) struct Plan {
    namespaces: PathBuf,
    pub(super) pods: Vec<PlannedPod>,
    /// The commands for node A. They make the devices of its pods, and both ends of the link.
    pub(super) node_a: String,
    pub(super) node_b: String,
}

pub(super) struct PlannedPod {
    pub(super) name: String,
    pub(super) node: NodeName,
    pub(super) addresses: Vec<IpAddr>,
    /// The commands for the pod, to be run once its node has made the pod's device.
    pub(super) batch: String,
}

impl Plan {
    pub(super) fn node_path(&self, node: NodeName) -> PathBuf {
        self.namespaces.join(node.as_str())
    }

    pub(super) fn pod_path(&self, pod: &str) -> PathBuf {
        self.namespaces.join(pod)
    }
}

pub(super) fn host_device(pod: &str) -> String {
    format!("vh-{pod}")
}

pub(super) fn plan(
    namespaces: &Path,
    pods: &[(String, NodeName, u8)],
    bridged: bool,
) -> Result<Plan> {
    let mut plan = Plan {
        namespaces: namespaces.to_owned(),
        pods: number_pods(pods)?,
        node_a: String::new(),
        node_b: String::new(),
    };
    for pod in &mut plan.pods {
        pod.batch = if bridged { bridged_pod_batch(pod)? } else { routed_pod_batch(pod)? };
    }
    let peer = plan.node_path(NodeName::B);
    plan.node_a = format!("link add {LINK} type veth peer name {LINK} netns {}\n", peer.display());
    plan.node_a += &node_batch(&plan, NodeName::A, NodeName::B, bridged)?;
    plan.node_b = node_batch(&plan, NodeName::B, NodeName::A, bridged)?;
    Ok(plan)
}

fn number_pods(pods: &[(String, NodeName, u8)]) -> Result<Vec<PlannedPod>> {
    let mut next = [(NodeName::A, FIRST_POD, FIRST_EXTRA), (NodeName::B, FIRST_POD, FIRST_EXTRA)];
    let mut planned = Vec::new();
    for (name, node, addresses) in pods {
        ensure!(name.len() <= 12, "pod name {name:?} is longer than 12: its device would not fit");
        for (counted, number, extra) in &mut next {
            if counted != node {
                continue;
            }
            let numbers = (0..*addresses).map(|index| match index {
                0 => *number,
                _ => extra.saturating_add(index),
            });
            let all = numbers
                .flat_map(|number| Family::BOTH.map(|family| node.address(family, number)))
                .collect();
            let (name, batch) = (name.clone(), String::new());
            planned.push(PlannedPod { name, node: *node, addresses: all, batch });
            *number += 1;
            *extra = extra.saturating_add(*addresses);
        }
    }
    Ok(planned)
}

/// Turns on routing for both families. Turns off duplicate detection, and filtering by source: that is the guard's job.
pub(super) fn prepare_node(netns: &Netns) -> Result<()> {
    for (key, value) in [
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/all/accept_dad", "0"),
    ] {
        netns.sysctl(key, value)?;
    }
    Ok(())
}

pub(super) fn prepare_pod(netns: &Netns) -> Result<()> {
    for (key, value) in [
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/all/accept_dad", "0"),
        ("net/ipv4/conf/default/rp_filter", "0"),
    ] {
        netns.sysctl(key, value)?;
    }
    Ok(())
}

/// Brings a device up without the kernel's own link-local address, whose duplicate detection would delay everything.
fn bring_up(batch: &mut String, device: &str) -> Result<()> {
    writeln!(batch, "link set {device} addrgenmode none")?;
    writeln!(batch, "link set {device} up")?;
    Ok(())
}

fn node_batch(plan: &Plan, node: NodeName, other: NodeName, bridged: bool) -> Result<String> {
    let mut batch = String::from("link set lo up\n");
    bring_up(&mut batch, LINK)?;
    let (mine, peer) = (u8::from(node == NodeName::B) + 1, u8::from(node == NodeName::A) + 1);
    writeln!(batch, "addr add 10.77.0.{mine}/30 dev {LINK}")?;
    writeln!(batch, "addr add fd77::{mine}/126 dev {LINK} nodad")?;
    // A router solicits its neighbours from a link-local address; without one it cannot forward.
    writeln!(batch, "addr add fe80::1{mine}/64 dev {LINK} nodad")?;
    writeln!(batch, "route add 10.77.{}.0/24 via 10.77.0.{peer}", other.subnet())?;
    writeln!(batch, "route add fd77:{}::/64 via fd77::{peer}", other.subnet())?;
    if bridged {
        writeln!(batch, "link add {BRIDGE} type bridge")?;
        bring_up(&mut batch, BRIDGE)?;
        writeln!(batch, "addr add 10.77.{}.1/24 dev {BRIDGE}", node.subnet())?;
        writeln!(batch, "addr add fd77:{}::1/64 dev {BRIDGE} nodad", node.subnet())?;
        writeln!(batch, "addr add {GATEWAY6}/64 dev {BRIDGE} nodad")?;
    }
    for pod in plan.pods.iter().filter(|pod| pod.node == node) {
        batch += &device_batch(&plan.pod_path(&pod.name), pod, bridged)?;
    }
    Ok(batch)
}

/// Returns the commands for a node that make the device of one pod.
fn device_batch(namespace: &Path, pod: &PlannedPod, bridged: bool) -> Result<String> {
    let mut batch = String::new();
    let device = host_device(&pod.name);
    // On a bridge each port needs a hardware address of its own.
    let fixed = if bridged { String::new() } else { format!("address {GATEWAY_MAC}") };
    let namespace = namespace.display();
    writeln!(
        batch,
        "link add {device} {fixed} type veth peer name {POD_DEVICE} netns {namespace}"
    )?;
    bring_up(&mut batch, &device)?;
    if bridged {
        writeln!(batch, "link set {device} master {BRIDGE}")?;
        return Ok(batch);
    }
    writeln!(batch, "addr add {GATEWAY4}/32 dev {device}")?;
    writeln!(batch, "addr add {GATEWAY6}/64 dev {device} nodad")?;
    for address in &pod.addresses {
        let bits = if address.is_ipv6() { 128 } else { 32 };
        writeln!(batch, "route add {address}/{bits} dev {device}")?;
    }
    Ok(batch)
}

/// Returns the commands that connect a pod whose namespace exists already: those for its node, then those for the pod.
pub(super) fn move_in(namespace: &Path, pod: &PlannedPod) -> Result<(String, String)> {
    Ok((device_batch(namespace, pod, false)?, routed_pod_batch(pod)?))
}

fn routed_pod_batch(pod: &PlannedPod) -> Result<String> {
    let mut batch = String::from("link set lo up\n");
    bring_up(&mut batch, POD_DEVICE)?;
    writeln!(batch, "addr add fe80::2/64 dev {POD_DEVICE} nodad")?;
    for address in &pod.addresses {
        match address {
            IpAddr::V4(_) => writeln!(batch, "addr add {address}/32 dev {POD_DEVICE}")?,
            IpAddr::V6(_) => writeln!(batch, "addr add {address}/128 dev {POD_DEVICE} nodad")?,
        }
    }
    writeln!(batch, "route add {GATEWAY4}/32 dev {POD_DEVICE} scope link")?;
    add_default_routes(&mut batch, pod, GATEWAY4, GATEWAY6)?;
    Ok(batch)
}

fn bridged_pod_batch(pod: &PlannedPod) -> Result<String> {
    let mut batch = String::from("link set lo up\n");
    bring_up(&mut batch, POD_DEVICE)?;
    for address in &pod.addresses {
        match address {
            IpAddr::V4(_) => writeln!(batch, "addr add {address}/24 dev {POD_DEVICE}")?,
            IpAddr::V6(_) => writeln!(batch, "addr add {address}/64 dev {POD_DEVICE} nodad")?,
        }
    }
    let gateway = |family| pod.node.address(family, 1).to_string();
    add_default_routes(&mut batch, pod, &gateway(Family::V4), &gateway(Family::V6))?;
    Ok(batch)
}

/// Adds default routes with a preferred source: the first address of each family is the pod's primary one.
fn add_default_routes(
    batch: &mut String,
    pod: &PlannedPod,
    gateway4: &str,
    gateway6: &str,
) -> Result<()> {
    for (gateway, ipv6) in [(gateway4, false), (gateway6, true)] {
        if let Some(source) = pod.addresses.iter().find(|address| address.is_ipv6() == ipv6) {
            writeln!(batch, "route add default via {gateway} dev {POD_DEVICE} src {source}")?;
        }
    }
    Ok(())
}
