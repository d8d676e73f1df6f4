//! Linux without BPF: network namespaces, sockets, netlink, limits.
//!
//! Nothing here knows the mesh. Code enters a namespace only on a thread made for that
//! ([`Netns::run`]) or on a thread that is declared a nomad ([`nomad`]); every other thread of the
//! process stays in the node's namespace for good.

mod addresses;
pub mod diag;
mod error;
pub mod kubelet;
pub mod limits;
mod netlink;
pub mod netns;
pub mod nomad;
mod option;
pub mod pod_processes;
pub mod program;
pub mod socket;
pub mod tcp;
pub mod veth;

#[cfg(test)]
mod lab;

pub use addresses::addresses;
pub use error::Error;
pub use netns::{Netns, NetnsId};
pub use veth::VethLink;

/// What every fallible function of this crate returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;
