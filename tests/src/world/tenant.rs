//! Pods that come and go while the world stands, and inherit each other's addresses.

use std::fs;

use anyhow::{Context as _, Result};
use rustix::mount::{UnmountFlags, unmount};

use super::{
    Family, NodeName, Pod, World,
    topology::{self, PlannedPod},
};
use crate::{Netns, netns};

impl World {
    /// Adds a pod with the addresses of this number, which no other pod may have at the time. Does not work on a
    /// bridged world. [`Self::pods`] does not list the pod.
    pub fn move_in(&self, name: &str, node: NodeName, number: u8) -> Result<Pod> {
        let path = self.directory().join(netns::DIRECTORY).join(name);
        let netns = Netns::create(&path)?;
        topology::prepare_pod(&netns)?;
        let addresses: Vec<_> =
            Family::BOTH.iter().map(|family| node.address(*family, number)).collect();
        let (name, batch) = (name.to_owned(), String::new());
        let planned = PlannedPod { name, node, addresses, batch };
        let (outside, inside) = topology::move_in(&path, &planned)?;
        self.node(node).ip(&outside)?;
        netns.ip(&inside)?;
        Ok(Pod { name: planned.name, node, netns, addresses: planned.addresses })
    }

    /// Takes a pod away as a CNI plugin does: its device first, which frees the addresses.
    pub fn move_out(&self, pod: &Pod) -> Result<()> {
        self.node(pod.node).ip(&format!("link del {}\n", pod.host_device()))?;
        let path = pod.netns.path();
        unmount(&path, UnmountFlags::DETACH).context("unpin a namespace")?;
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    }
}
