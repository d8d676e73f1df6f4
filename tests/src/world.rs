//! Two nodes and their pods, as a routed CNI plugin lays them out, in IPv4 and IPv6.
//!
//! All worlds use the same addresses: each has its own namespaces, and several agents on one kernel
//! must not mix them up.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};

use crate::{
    Netns, Process,
    cleanup::{self, Guard, Undo},
    netns,
};

mod tenant;
mod topology;

/// The device that joins the two nodes; it has this name on both.
pub const LINK: &str = "uplink";
/// The device of a pod.
pub const POD_DEVICE: &str = "eth0";

/// One of the two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeName {
    /// `node-a`
    A,
    /// `node-b`
    B,
}

/// A version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

/// A pod: one network namespace with `eth0`.
#[derive(Debug)]
pub struct Pod {
    /// The pod's name.
    pub name: String,
    /// The node that the pod runs on.
    pub node: NodeName,
    /// The pod's namespace.
    pub netns: Netns,
    /// All addresses of the pod. Its own connections leave from the first of each family.
    pub addresses: Vec<IpAddr>,
}

/// Two nodes, their pods, and a directory for what runs in them. Dropping it removes all of them.
#[derive(Debug)]
pub struct World {
    id: String,
    directory: PathBuf,
    node_a: Netns,
    node_b: Netns,
    pods: BTreeMap<String, Pod>,
    // Dropped in this order: namespaces first, then the directory with the record of them.
    _namespaces: Guard,
    _directory: Guard,
}

/// The description of a [`World`] to be made.
#[derive(Debug, Default)]
pub struct WorldBuilder {
    name: Option<String>,
    pods: Vec<(String, NodeName, u8)>,
    bridged: bool,
}

// === impl NodeName ===

impl NodeName {
    /// Both nodes.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// Returns the node's name in the mesh file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "node-a",
            Self::B => "node-b",
        }
    }

    /// Returns the third byte of the IPv4 addresses of the node's pods, and the second group of
    /// their IPv6 addresses.
    fn subnet(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    /// Returns a pod's address of the given number.
    pub(crate) fn address(self, family: Family, number: u8) -> IpAddr {
        let subnet = self.subnet();
        match family {
            Family::V4 => Ipv4Addr::new(10, 77, subnet, number).into(),
            Family::V6 => Ipv6Addr::new(0xfd77, subnet.into(), 0, 0, 0, 0, 0, number.into()).into(),
        }
    }
}

// === impl Family ===

impl Family {
    /// Both families.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// Returns the address that stands for any.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

// === impl Pod ===

impl Pod {
    /// Returns the address that the pod's own connections of this family leave from.
    pub fn ip(&self, family: Family) -> IpAddr {
        let same = |address: &&IpAddr| address.is_ipv6() == (family == Family::V6);
        self.addresses.iter().find(same).copied().unwrap_or(family.unspecified())
    }

    /// Returns the pod's address of this family with a port.
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip(family), port)
    }

    /// Runs `work` on a thread inside the pod.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.netns.run(work)
    }

    /// Returns the name of the host end of the pod's veth pair, in its node's namespace.
    pub fn host_device(&self) -> String {
        topology::host_device(&self.name)
    }
}

// === impl WorldBuilder ===

impl WorldBuilder {
    /// Names the world. Otherwise it is named after the test, which is the thread's name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Adds a pod. Names are at most 12 bytes, because the host device is named after it.
    #[must_use]
    pub fn pod(self, name: &str, node: NodeName) -> Self {
        self.pod_with_addresses(name, node, 1)
    }

    /// Adds a pod with several addresses of each family.
    #[must_use]
    pub fn pod_with_addresses(mut self, name: &str, node: NodeName, addresses: u8) -> Self {
        self.pods.push((name.to_owned(), node, addresses));
        self
    }

    /// Joins the pods of a node by a bridge, as kindnet's and flannel's default plugins do: frames
    /// between them never enter the node's own IP stack.
    #[must_use]
    pub fn bridged(mut self) -> Self {
        self.bridged = true;
        self
    }

    /// Makes the world.
    ///
    /// # Panics
    ///
    /// If the machine cannot run it (see [`crate::require_root`]).
    pub fn build(self) -> Result<World> {
        crate::require_root();
        cleanup::remove_leftovers()?;
        let id = world_id(self.name.as_deref());
        let (directory, directory_guard) = cleanup::claim(&id)?;
        let namespaces_path = directory.join(netns::DIRECTORY);
        fs::create_dir_all(&namespaces_path)?;
        let namespaces = Guard::new(Undo::Namespaces(namespaces_path.clone()));
        let plan = topology::plan(&namespaces_path, &self.pods, self.bridged)?;
        let node_a = Netns::create(&plan.node_path(NodeName::A))?;
        let node_b = Netns::create(&plan.node_path(NodeName::B))?;
        let mut pods = BTreeMap::new();
        for pod in &plan.pods {
            let netns = Netns::create(&plan.pod_path(&pod.name))?;
            topology::prepare_pod(&netns)?;
            let (name, addresses) = (pod.name.clone(), pod.addresses.clone());
            pods.insert(name.clone(), Pod { name, node: pod.node, netns, addresses });
        }
        for (node, batch) in [(&node_a, &plan.node_a), (&node_b, &plan.node_b)] {
            topology::prepare_node(node)?;
            node.ip(batch)?;
        }
        for pod in &plan.pods {
            let made = pods.get(&pod.name).context("a planned pod was not made")?;
            made.netns.ip(&pod.batch)?;
        }
        Ok(World {
            id,
            directory,
            node_a,
            node_b,
            pods,
            _namespaces: namespaces,
            _directory: directory_guard,
        })
    }
}

// === impl World ===

impl World {
    /// Starts the description of a world.
    pub fn builder() -> WorldBuilder {
        WorldBuilder::default()
    }

    /// Returns the world's name, unique on this machine.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the directory of the world's configuration, sockets and logs.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the namespace of a node.
    pub fn node(&self, node: NodeName) -> &Netns {
        match node {
            NodeName::A => &self.node_a,
            NodeName::B => &self.node_b,
        }
    }

    /// Returns a pod by name.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods.get(name).with_context(|| format!("this world has no pod {name:?}"))
    }

    /// Returns every pod.
    pub fn pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values()
    }

    /// Returns every namespace of this world: nodes, then pods.
    pub fn namespaces(&self) -> impl Iterator<Item = &Netns> {
        [&self.node_a, &self.node_b].into_iter().chain(self.pods.values().map(|pod| &pod.netns))
    }

    /// Starts a program inside a pod.
    pub fn start(&self, pod: &str, name: &str, command: Command) -> Result<Process> {
        Process::start(&self.directory, &self.pod(pod)?.netns, name, command)
    }
}

/// Returns `lab-<name>-<number>-<pid>`: the pid tells runs apart, the number worlds of one run.
fn world_id(name: Option<&str>) -> String {
    static WORLDS: AtomicU32 = AtomicU32::new(0);
    let thread = std::thread::current();
    let name = name.or(thread.name()).unwrap_or("world");
    let kept: String = name
        .rsplit("::")
        .next()
        .unwrap_or(name)
        .chars()
        .filter_map(|letter| match letter {
            'a'..='z' | '0'..='9' => Some(letter),
            '_' | '-' => Some('-'),
            _ => None,
        })
        .take(24)
        .collect();
    let number = WORLDS.fetch_add(1, Ordering::Relaxed);
    format!("lab-{kept}-{number}-{}", std::process::id())
}
