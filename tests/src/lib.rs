//! Namespaces, agents and wire captures for the tests and the demo; nothing is mocked.
//!
//! A [`World`] is two nodes and their pods, each a network namespace of its own, joined by veth pairs as a routed CNI
//! plugin would join them. An [`Agent`] is the real binary on one of the nodes. A [`Capture`] is what an eavesdropper
//! on a link sees. Everything is registered with [`cleanup`] before it is made. It is therefore removed even after a
//! panic, after Ctrl-C and, following a crash, before the next run.
//!
//! ```text
//!  pod --eth0--vh-pod-- node A --uplink-uplink-- node B --vh-pod--eth0-- pod
//!                          \__ Capture on any of these, v4 and v6 __/
//! ```

pub mod agent;
pub mod canary;
pub mod capture;
pub mod certificate_authority;
pub mod cleanup;
pub mod cluster;
pub mod controller;
pub mod demo;
pub mod escape;
pub mod knock;
pub mod machine;
pub mod mesh;
pub mod netns;
pub mod node_ca;
pub mod pki;
pub mod policies;
pub mod privilege;
pub mod process;
pub mod programs;
pub mod syscalls;
pub mod traffic;
pub mod world;

pub use agent::{Agent, Lab};
pub use canary::Canary;
pub use capture::{Capture, Seen};
pub use cluster::Cluster;
pub use mesh::{MeshFile, PodEntry, ServiceEntry};
pub use netns::Netns;
pub use node_ca::NodeCa;
pub use pki::{Authority, TrustFiles};
pub use privilege::require_root;
pub use process::Process;
pub use world::{Family, NodeName, Pod, World, WorldBuilder};

/// Returns whether the long tests run at full size: `SLUICE_FULL=1`, set by `cargo xtask test --full`.
pub fn full_size() -> bool {
    std::env::var_os("SLUICE_FULL").is_some_and(|value| value == "1")
}
