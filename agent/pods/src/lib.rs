//! Enrols pods: listeners in their namespaces, hooks on their sockets, the guard on their veth.
//!
//! [`PodManager`] makes the node's pods what a mesh snapshot says they are, one pod at a time: trouble
//! with one never touches another. A pod is enrolled in these steps, and a failure at any of them
//! leaves the pod as it was:
//!
//! 1. its namespace is opened, and checked to be the one that the mesh means: it is not the agent's,
//!    no other pod has it, and it has the declared addresses;
//! 2. every way out of it is found, and is a veth that can be guarded;
//! 3. the workers' listeners are made inside, and marked as the agent's own;
//! 4. the hooks take the pod over: from here on its new connections reach those listeners, where they
//!    wait in the backlog;
//! 5. connections to mesh peers from before step 4, which nobody authenticated, are destroyed, and
//!    applications reconnect through the mesh;
//! 6. the [`Workers`] get the listeners and begin to accept. Only now can the agent have sockets in
//!    the pod, so step 5 cannot hit them.
//!
//! Withdrawing removes the hooks first, then the workers close everything that they have in the
//! pod. A pod that an earlier agent enrolled stays captured until a snapshot says otherwise:
//! without knowledge, its connections are refused rather than set free.
#![forbid(unsafe_code)]

mod declared;
mod enrol;
mod event;
mod exempt;
mod hooks;
#[cfg(test)]
mod lab;
mod listeners;
mod local_pod;
mod located;
mod manager;
mod record;
mod refusal;
mod retry;
mod status;
mod workers;

pub use event::{Departure, PodEvent};
pub use hooks::Hooks;
pub use local_pod::LocalPod;
pub use manager::{PodManager, Verdict};
pub use status::{PodState, PodStatus};
pub use workers::{WorkerListeners, Workers};
