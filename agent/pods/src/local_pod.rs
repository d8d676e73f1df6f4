//! An enrolled pod of this node, as everyone who serves its connections sees it.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use sluice_mesh::WorkloadUid;
use sluice_spiffe::{SpiffeId, WorkloadName};
use sluice_sys::Netns;

/// A pod that is captured on this node. Immutable: when something of it changes, it is enrolled anew
/// and there is another one.
///
/// It keeps the pod's network namespace alive. Whoever serves it lets go of it, and of every socket
/// made in the namespace, when [`Workers::remove`](crate::Workers::remove) says so.
#[derive(Debug)]
pub struct LocalPod {
    /// Unique over time.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: String,
    /// Namespace and service account.
    pub account: WorkloadName,
    /// Whose certificate its connections use.
    pub identity: SpiffeId,
    /// All its addresses; the first of each family is the one that its connections leave from unless
    /// the application binds another.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace, where every socket that serves it is made.
    pub netns: Netns,
    /// The namespace's cookie, by which the hooks know the pod.
    pub cookie: u64,
    /// Interfaces of the node where its packets come out, and the guard sits.
    pub guard_ifindexes: Vec<u32>,
    /// Since when this enrolment captures it.
    pub enrolled_at: SystemTime,
}

// === impl LocalPod ===

impl LocalPod {
    /// What others know an application of this pod by. A captured connection may come from loopback, if the
    /// application has bound no address of its own; the pod's primary one is what it would have had.
    pub fn seen_as(&self, application: SocketAddr) -> SocketAddr {
        let ip = application.ip();
        let of_family = |address: &&IpAddr| address.is_ipv4() == ip.is_ipv4();
        match self.addresses.iter().find(of_family) {
            Some(primary) if ip.is_loopback() => SocketAddr::new(*primary, application.port()),
            _ => application,
        }
    }
}
