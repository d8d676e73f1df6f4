//! An enrolled pod of this node, as all code that serves its connections sees it.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use sluice_mesh::WorkloadUid;
use sluice_spiffe::{SpiffeId, WorkloadName};
use sluice_sys::Netns;

/// A pod that is captured on this node. Immutable: when anything about the pod changes, it is
/// enrolled anew and a new `LocalPod` replaces this one.
///
/// It keeps the pod's network namespace alive. Workers must drop it, and every socket made in the
/// namespace, when [`Workers::remove`](crate::Workers::remove) is called.
#[derive(Debug)]
pub struct LocalPod {
    /// Identifier that is never used for another pod.
    pub uid: WorkloadUid,
    /// Pod name.
    pub name: String,
    /// Namespace and service account.
    pub account: WorkloadName,
    /// Identity whose certificate its connections use.
    pub identity: SpiffeId,
    /// All its addresses. Its connections leave from the first of each family, unless the
    /// application binds another.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace, where every socket that serves it is made.
    pub netns: Netns,
    /// The namespace's cookie, by which the hooks recognise the pod.
    pub cookie: u64,
    /// Interfaces of the node where its packets come out and the guard sits.
    pub guard_ifindexes: Vec<u32>,
    /// Time at which this enrolment was made.
    pub enrolled_at: SystemTime,
}

// === impl LocalPod ===

impl LocalPod {
    /// Returns the address by which others know an application of this pod. A captured connection whose
    /// application has bound no address may come from loopback; it would otherwise have come from the
    /// pod's primary address, which is returned then.
    pub fn seen_as(&self, application: SocketAddr) -> SocketAddr {
        let ip = application.ip();
        let of_family = |address: &&IpAddr| address.is_ipv4() == ip.is_ipv4();
        match self.addresses.iter().find(of_family) {
            Some(primary) if ip.is_loopback() => SocketAddr::new(*primary, application.port()),
            _ => application,
        }
    }
}
