//! What enrolment asks of the threads that serve pods' connections.

use std::{net::TcpListener, sync::Arc};

use crate::LocalPod;

/// One worker's listeners in a pod's namespace: non-blocking, marked as the agent's own, and already
/// in use by the kernel, so connections may be waiting.
#[derive(Debug)]
pub struct WorkerListeners {
    /// Where the pod's own connections arrive: IPv4, and IPv6 if the pod has it. Accepted sockets are reset when
    /// they are closed ([`sluice_sys::socket::set_reset_on_close`]).
    pub outbound: Vec<TcpListener>,
    /// Where connections to the pod arrive: IPv4, and IPv6 if the pod has it.
    pub inbound: Vec<TcpListener>,
}

/// The worker threads. Both calls return at once; calls for the same pod take effect in the order
/// in which they are made.
pub trait Workers: Send + Sync {
    /// Starts serving a pod; `listeners` has one entry per worker.
    ///
    /// The same pod may be added again when it is enrolled anew. The kernel then knows only the new
    /// listeners: the workers accept what still waits in the old ones, close them, and let running
    /// connections end by themselves.
    fn add(&self, pod: Arc<LocalPod>, listeners: Vec<WorkerListeners>);

    /// Stops serving a pod that is no longer captured. The workers close everything that they made in
    /// its namespace, running connections included, leave the namespace
    /// ([`sluice_sys::nomad::leave`]), and drop their handles on the pod: even one handle keeps the
    /// namespace and its veth alive.
    fn remove(&self, pod: &Arc<LocalPod>);
}
