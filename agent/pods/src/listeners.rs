//! The listeners of a pod: two per worker and address family. All are on the pod's loopback, so nobody
//! outside the pod can reach one except through the hooks.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    ops::RangeInclusive,
    os::fd::{AsFd, BorrowedFd},
};

use sluice_kernel::WorkerSockets;
use sluice_sys::{Netns, socket};

use crate::{WorkerListeners, refusal::Refusal};

/// The depth that Linux allows a namespace by default (`net.core.somaxconn`). Connections wait here
/// while a worker is busy, or while the agent is being restarted.
const BACKLOG: i32 = 4096;

/// Ports that no application of the pod asks for: system ports (RFC 6335) that are assigned to no service. A port of
/// the kernel's choice may be one where an application is configured to listen, and one that came later would not
/// get its port.
const UNASSIGNED: [RangeInclusive<u16>; 2] = [914..=952, 954..=988];

/// The listeners for one pod, before they are handed to the workers.
pub(crate) struct PodListeners(Vec<OfWorker>);

struct OfWorker {
    outbound: OfFamilies,
    inbound: OfFamilies,
}

struct OfFamilies {
    v4: TcpListener,
    v6: Option<TcpListener>,
}

// === impl PodListeners ===

impl PodListeners {
    /// Makes and marks the listeners inside `netns`. A pod without IPv6 gets no IPv6 listeners; if
    /// `needs_v6`, that is an error.
    pub(crate) fn open(
        netns: &Netns,
        workers: usize,
        needs_v6: bool,
        mark: impl Fn(BorrowedFd<'_>) -> Result<(), sluice_kernel::Error>,
    ) -> Result<Self, Refusal> {
        let open = || (0..workers).map(|_| OfWorker::open(needs_v6)).collect::<Result<Vec<_>, _>>();
        let opened = netns.run(open)??;
        opened.iter().flat_map(OfWorker::all).try_for_each(|listener| mark(listener.as_fd()))?;
        Ok(Self(opened))
    }

    /// Returns the listeners as the hooks take them.
    pub(crate) fn sockets(&self) -> Result<Vec<WorkerSockets<'_>>, Refusal> {
        self.0.iter().map(OfWorker::sockets).collect::<io::Result<_>>().map_err(Refusal::Listeners)
    }

    /// Returns the listeners as the workers take them.
    pub(crate) fn into_workers(self) -> Vec<WorkerListeners> {
        let listeners = |OfWorker { outbound, inbound }| WorkerListeners {
            outbound: outbound.into_vec(),
            inbound: inbound.into_vec(),
        };
        self.0.into_iter().map(listeners).collect()
    }
}

// === impl OfWorker ===

impl OfWorker {
    fn open(needs_v6: bool) -> Result<Self, Refusal> {
        let outbound = OfFamilies::open(needs_v6)?;
        // If the agent dies, the application must not take that for the end of its peer's stream.
        outbound.all().try_for_each(socket::set_reset_on_close).map_err(Refusal::Listeners)?;
        Ok(Self { outbound, inbound: OfFamilies::open(needs_v6)? })
    }

    fn all(&self) -> impl Iterator<Item = &TcpListener> {
        self.outbound.all().chain(self.inbound.all())
    }

    fn sockets(&self) -> io::Result<WorkerSockets<'_>> {
        let port = |listener: &TcpListener| listener.local_addr().map(|address| address.port());
        Ok(WorkerSockets {
            out_port_v4: Some(port(&self.outbound.v4)?),
            out_port_v6: self.outbound.v6.as_ref().map(port).transpose()?,
            in_v4: Some(self.inbound.v4.as_fd()),
            in_v6: self.inbound.v6.as_ref().map(AsFd::as_fd),
        })
    }
}

// === impl OfFamilies ===

impl OfFamilies {
    fn open(needs_v6: bool) -> Result<Self, Refusal> {
        let v4 = listen(Ipv4Addr::LOCALHOST.into())?;
        let v6 = match listen(Ipv6Addr::LOCALHOST.into()) {
            Err(_) if !needs_v6 => None,
            listener => Some(listener?),
        };
        Ok(Self { v4, v6 })
    }

    fn all(&self) -> impl Iterator<Item = &TcpListener> {
        [&self.v4].into_iter().chain(&self.v6)
    }

    fn into_vec(self) -> Vec<TcpListener> {
        [self.v4].into_iter().chain(self.v6).collect()
    }
}

/// Listens on the first of the [`UNASSIGNED`] ports that is free. If there is none, or the agent lacks
/// `CAP_NET_BIND_SERVICE` for them, the kernel chooses the port.
fn listen(address: IpAddr) -> Result<TcpListener, Refusal> {
    let on = |port| socket::listen(SocketAddr::new(address, port), BACKLOG);
    let is_taken = |error: &io::Error| error.kind() == ErrorKind::AddrInUse;
    UNASSIGNED
        .into_iter()
        .flatten()
        .map(on)
        .find(|listener| !listener.as_ref().is_err_and(is_taken))
        .and_then(Result::ok)
        .map_or_else(|| on(0), Ok)
        .map_err(|source| Refusal::Listen { address, source })
}
