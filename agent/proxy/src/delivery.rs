//! The last step of an inbound connection: from the agent to the application, over the pod's loopback.

use std::{
    collections::BTreeSet,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    ops::RangeInclusive,
    os::fd::AsFd,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_kernel::SocketTable;
use sluice_sys::{
    diag,
    socket::{self, Socket},
    tcp,
};
use tokio::time::timeout;

use crate::pod::Pod;

/// How long the application may take to accept, when its backlog is full.
const DELIVER_TIME: Duration = Duration::from_secs(10);

/// How long one that has not answered at once is taken for busy, before it is asked how it listens.
const GRACE: Duration = Duration::from_millis(20);

/// Most applications that [`ON_DEVICE`] remembers.
const MAX_ON_DEVICE: usize = 4096;

/// How many ports are tried for a delivery from the pod's own address before the choice is left to the kernel.
const PORT_TRIES: usize = 16;

/// Counts the ports that were tried, to give each its turn. Separate from the counter that spreads connections over
/// endpoints: where both ends are of this agent, every connection would count twice, and all could go to one
/// endpoint.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Actual source of deliveries over IPv4; the application sees the client's address. A loopback address, because only
/// there does the kernel use a port in `TIME_WAIT` again (`tcp_tw_reuse` is 2 by default). Otherwise one port of the
/// application could take only 470 connections a second. Not 127.0.0.1, which some applications trust.
const DELIVERY_SOURCE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// Applications that were found to listen on a device other than loopback, by namespace and port.
static ON_DEVICE: Mutex<BTreeSet<(u64, u16)>> = Mutex::new(BTreeSet::new());

/// Connects to the application on `local` inside the pod, which will see `client` as its peer. The socket is not
/// registered with a runtime. Closing it sends a reset: see [`crate::closing`].
pub(crate) async fn deliver(
    sockets: &SocketTable,
    pod: &Pod,
    client: SocketAddr,
    local: SocketAddr,
) -> io::Result<TcpStream> {
    let delivery = Delivery { sockets, pod, client, local };
    if local.is_ipv6() || delivery.is_on_device() {
        return settled(delivery.connect_from_pod()?, DELIVER_TIME).await?.or_timed_out();
    }
    let first = delivery.connect(Source::Address(DELIVERY_SOURCE.into()))?;
    let waiting = match settled(first, GRACE).await? {
        Progress::Settled(stream) => return Ok(stream),
        Progress::Waiting(socket) => socket,
    };
    // Its backlog is full; or it listens on a device (`SO_BINDTODEVICE`) other than the loopback one, from which it
    // answers no loopback address. Not to be found out by a second connection: an application would see both.
    if !delivery.listens_on_device() {
        return settled(waiting, DELIVER_TIME).await?.or_timed_out();
    }
    delivery.note_device();
    settled(delivery.connect_from_pod()?, DELIVER_TIME).await?.or_timed_out()
}

/// A connection to be made to an application.
#[derive(Clone, Copy)]
struct Delivery<'a> {
    sockets: &'a SocketTable,
    pod: &'a Pod,
    client: SocketAddr,
    local: SocketAddr,
}

/// How far the connection to an application has come.
enum Progress {
    Settled(TcpStream),
    Waiting(Socket),
}

/// Actual source of a delivery, which the application does not see.
#[derive(Clone, Copy)]
enum Source {
    Any,
    /// This address, with a port that the kernel chooses.
    Address(IpAddr),
    Chosen(SocketAddr),
}

// === impl Delivery ===

impl Delivery<'_> {
    /// Starts to connect to the application.
    fn connect(self, source: Source) -> io::Result<Socket> {
        self.pod.enter()?;
        let socket = socket::tcp_socket(self.local.is_ipv6())?;
        self.sockets.mark_delivery(socket.as_fd(), self.client).map_err(io::Error::other)?;
        socket::set_reset_on_close(&socket)?;
        match source {
            Source::Any => {}
            Source::Address(address) => socket::bind_address(&socket, address)?,
            Source::Chosen(source) => socket::bind_anew(&socket, source)?,
        }
        tcp::start_connecting(&socket, self.local)?;
        Ok(socket)
    }

    /// Starts to connect to the application from the pod's own address, the one that is connected to.
    fn connect_from_pod(self) -> io::Result<Socket> {
        let ports = self.pod.netns.ports();
        let mut sources = (0..PORT_TRIES)
            .filter_map(|_| source(self.local, ports, TURN.fetch_add(1, Ordering::Relaxed)));
        // Takes the first attempt that succeeds, or fails for a reason other than the port.
        let chosen = sources.find_map(|source| match self.connect(Source::Chosen(source)) {
            Err(error) if is_taken(&error) => None,
            outcome => Some(outcome),
        });
        chosen.unwrap_or_else(|| self.connect(Source::Any))
    }

    /// Asks the kernel.
    fn listens_on_device(self) -> bool {
        diag::listens_on_device(&self.pod.netns, self.local.port()).unwrap_or_else(|error| {
            tracing::warn!(address = %self.local, %error, "asking who listens there");
            false
        })
    }

    fn is_on_device(self) -> bool {
        on_device().contains(&self.application())
    }

    fn note_device(self) {
        let mut known = on_device();
        // Whatever is forgotten here is found out again.
        if known.len() >= MAX_ON_DEVICE {
            known.clear();
        }
        known.insert(self.application());
    }

    fn application(self) -> (u64, u16) {
        (self.pod.netns.cookie(), self.local.port())
    }
}

fn on_device() -> MutexGuard<'static, BTreeSet<(u64, u16)>> {
    ON_DEVICE.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Progress ===

impl Progress {
    fn or_timed_out(self) -> io::Result<TcpStream> {
        match self {
            Self::Settled(stream) => Ok(stream),
            Self::Waiting(_) => Err(ErrorKind::TimedOut.into()),
        }
    }
}

/// Waits up to `patience` until the connection is open. Over loopback, the handshake is usually over before `connect`
/// returns.
async fn settled(socket: Socket, patience: Duration) -> io::Result<Progress> {
    let is_settled = {
        let mut watched = [PollFd::new(&socket, PollFlags::OUT)];
        poll(&mut watched, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? > 0
    };
    if let Some(error) = socket.take_error()? {
        return Err(error);
    }
    if is_settled {
        return Ok(Progress::Settled(socket.into()));
    }
    let stream = tcp::TcpStream::from_std(socket.into())?;
    match timeout(patience, stream.settled()).await {
        Ok(settled) => settled.map(|()| Progress::Settled(stream.into_std())),
        Err(_elapsed) => Ok(Progress::Waiting(stream.into_std().into())),
    }
}

/// Returns the source for a delivery from the address that it goes to. Over IPv6 this address is used because the
/// kernel sends no reset from it to `::1`. The port is chosen here, because between such addresses the kernel itself
/// would not use one in `TIME_WAIT` again. Returns `None` for the port that the delivery goes to: from there, the
/// socket would connect to itself.
fn source(local: SocketAddr, ports: &RangeInclusive<u16>, turn: usize) -> Option<SocketAddr> {
    let count = ports.len();
    let port = ports.clone().nth(turn.checked_rem(count)?)?;
    (port != local.port()).then(|| SocketAddr::new(local.ip(), port))
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable)
}
