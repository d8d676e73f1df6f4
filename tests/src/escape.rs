//! Ways in which a process in a pod could get bytes to a peer past a hook on `connect`.
//!
//! Each is first proven to work from a pod outside the mesh; only then does its failure from an
//! enrolled pod mean anything. The lab runs as root, which has `CAP_NET_RAW` and more.

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::net::netdevice::name_to_index;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::{Canary, Pod, syscalls, world::POD_DEVICE};

pub mod donor;
mod frames;
mod ring;

/// `IPPROTO_MPTCP`
const MPTCP: i32 = 262;
/// `TCP_FASTOPEN_CONNECT`
const TCP_FASTOPEN_CONNECT: i32 = 30;
/// `IPV6_TRANSPARENT`
const IPV6_TRANSPARENT: i32 = 75;
/// An IP protocol number for experiments (RFC 3692).
const EXPERIMENTAL: i32 = 253;
const PATIENCE: Duration = Duration::from_secs(2);

/// One way out of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over a stream socket: the peer's server answers when it is reached.
    Stream(StreamWay),
    /// Over a raw socket.
    Raw(RawWay),
    /// Over a packet socket, which sends whole frames.
    Frame(FrameWay),
}

/// Ways that use a stream socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamWay {
    /// A plain `connect`: what every program does.
    Connect,
    /// `connect` without waiting for it.
    NonBlocking,
    /// `sendto(MSG_FASTOPEN)`, which connects without `connect`.
    FastOpen,
    /// `TCP_FASTOPEN_CONNECT`, which sends the SYN with the first bytes.
    FastOpenConnect,
    /// Requests in an `io_uring`.
    Ring,
    /// A multipath TCP socket.
    Multipath,
    /// An IPv6 socket to a v4-mapped address.
    V4Mapped,
    /// A socket bound to the device, as if to avoid the loopback.
    BoundToDevice,
    /// `IP_TRANSPARENT`, as set by proxies that keep the source address.
    Transparent,
    /// A socket that carries this mark, as another mesh's own sockets do.
    Marked(u32),
}

/// Ways that use a raw socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RawWay {
    /// A packet of an experimental protocol.
    Experimental,
    /// A TCP segment with data.
    TcpSegment,
    /// A whole TCP packet with the source address of another pod (`IP_HDRINCL`).
    SpoofedTcp,
}

/// Ways that use a packet socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameWay {
    /// A TCP segment with data.
    TcpData,
    /// A SYN that carries data.
    SynData,
    /// A datagram with no UDP socket behind it.
    Udp,
    /// A later fragment, which has no TCP header.
    Fragment,
    /// A TCP segment behind an extension header (IPv6) or IP options (IPv4).
    Extension,
}

// === impl Way ===

impl Way {
    /// All ways; the forged mark is the one that Istio's own sockets carry.
    pub const ALL: [Self; 18] = [
        Self::Stream(StreamWay::Connect),
        Self::Stream(StreamWay::NonBlocking),
        Self::Stream(StreamWay::FastOpen),
        Self::Stream(StreamWay::FastOpenConnect),
        Self::Stream(StreamWay::Ring),
        Self::Stream(StreamWay::Multipath),
        Self::Stream(StreamWay::V4Mapped),
        Self::Stream(StreamWay::BoundToDevice),
        Self::Stream(StreamWay::Transparent),
        Self::Stream(StreamWay::Marked(0x539)),
        Self::Raw(RawWay::Experimental),
        Self::Raw(RawWay::TcpSegment),
        Self::Raw(RawWay::SpoofedTcp),
        Self::Frame(FrameWay::TcpData),
        Self::Frame(FrameWay::SynData),
        Self::Frame(FrameWay::Udp),
        Self::Frame(FrameWay::Fragment),
        Self::Frame(FrameWay::Extension),
    ];

    /// Returns the ways with marks worth forging: each bit, and those of Istio, kube-proxy, Cilium
    /// and Calico.
    pub fn marks() -> impl Iterator<Item = Self> {
        let known = [0x539, 0xfff, 0x4000, 0x8000, 0x0e00, 0x0f00, u32::MAX];
        let marks = (0..32).map(|bit| 1_u32 << bit).chain(known);
        marks.map(|mark| Self::Stream(StreamWay::Marked(mark)))
    }

    /// Returns whether this way exists for `target`'s family: IPv6 has neither mapped targets nor
    /// raw sockets that send a whole packet (frames do that).
    pub fn applies_to(self, target: SocketAddr) -> bool {
        let only_v4 =
            matches!(self, Self::Stream(StreamWay::V4Mapped) | Self::Raw(RawWay::SpoofedTcp));
        target.is_ipv4() || !only_v4
    }

    /// Returns whether the guard stops this way to any destination, of the mesh or not: IPv4
    /// options can route a packet to another address than the one in its header.
    pub fn is_stopped_everywhere(self, target: SocketAddr) -> bool {
        self == Self::Frame(FrameWay::Extension) && target.is_ipv4()
    }

    /// Tries to get the canary from `pod` to `target`. An error does not mean that nothing was
    /// sent: the wire decides.
    pub fn send(self, pod: &Pod, target: SocketAddr, canary: &Canary) -> Result<()> {
        pod.run(|| match self {
            Self::Stream(way) => way.send(target, canary),
            Self::Raw(way) => way.send(pod, target, canary),
            Self::Frame(way) => way.send(pod, target, canary),
        })
    }
}

// === impl StreamWay ===

impl StreamWay {
    fn send(self, target: SocketAddr, canary: &Canary) -> Result<()> {
        let socket = self.socket(target)?;
        // Linux 5.15 takes no time limit for writing to an MPTCP socket; a canary fits into its buffer.
        if self != Self::Multipath {
            socket.set_write_timeout(Some(PATIENCE))?;
        }
        socket.set_read_timeout(Some(PATIENCE))?;
        match self {
            Self::FastOpen => {
                let flags = libc::MSG_FASTOPEN;
                socket.send_to_with_flags(canary.as_bytes(), &target.into(), flags)?;
                return linger(&socket);
            }
            Self::NonBlocking => {
                socket.set_nonblocking(true)?;
                // A non-blocking connect answers that it is in progress.
                socket.connect(&target.into()).ok();
                std::thread::sleep(Duration::from_millis(100));
                socket.set_nonblocking(false)?;
            }
            Self::Ring => {
                ring::connect_and_send(&socket, &target.into(), canary.as_bytes(), PATIENCE)?;
                return linger(&socket);
            }
            // Returns at once; the SYN leaves with the first bytes.
            Self::FastOpenConnect => socket.connect(&target.into())?,
            Self::Connect
            | Self::Multipath
            | Self::V4Mapped
            | Self::BoundToDevice
            | Self::Transparent
            | Self::Marked(_) => {
                socket.connect_timeout(&self.address(target).into(), PATIENCE)?;
            }
        }
        socket.send(canary.as_bytes())?;
        linger(&socket)
    }

    fn address(self, target: SocketAddr) -> SocketAddr {
        match (self, target) {
            (Self::V4Mapped, SocketAddr::V4(v4)) => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            _ => target,
        }
    }

    fn socket(self, target: SocketAddr) -> Result<Socket> {
        let protocol = if self == Self::Multipath { Protocol::from(MPTCP) } else { Protocol::TCP };
        let domain = Domain::for_address(self.address(target));
        let socket = Socket::new(domain, Type::STREAM, Some(protocol))?;
        let set = |level, option, value: u32| {
            syscalls::set_option(socket.as_fd(), level, option, &value.to_ne_bytes())
        };
        match self {
            Self::FastOpenConnect => set(libc::IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)?,
            Self::BoundToDevice => socket.bind_device(Some(POD_DEVICE.as_bytes()))?,
            Self::Marked(mark) => set(libc::SOL_SOCKET, libc::SO_MARK, mark)?,
            Self::Transparent if target.is_ipv6() => set(libc::SOL_IPV6, IPV6_TRANSPARENT, 1)?,
            Self::Transparent => set(libc::SOL_IP, libc::IP_TRANSPARENT, 1)?,
            Self::Connect
            | Self::NonBlocking
            | Self::FastOpen
            | Self::Ring
            | Self::Multipath
            | Self::V4Mapped => {}
        }
        Ok(socket)
    }
}

// === impl RawWay ===

impl RawWay {
    fn send(self, pod: &Pod, target: SocketAddr, canary: &Canary) -> Result<()> {
        let token = canary.as_bytes();
        let (protocol, packet) = match self {
            Self::Experimental => (EXPERIMENTAL, token.to_vec()),
            Self::TcpSegment => {
                let source = source_of(pod, target);
                (libc::IPPROTO_TCP, frames::segment(source, target, frames::PSH_ACK, token))
            }
            Self::SpoofedTcp => {
                let neighbour = pod.node.address(crate::Family::V4, 250);
                let source = SocketAddr::new(neighbour, 40_000);
                let segment = frames::segment(source, target, frames::PSH_ACK, token);
                let packet = frames::packet(source.ip(), target.ip(), frames::TCP, &segment);
                (libc::IPPROTO_RAW, packet)
            }
        };
        let domain = Domain::for_address(target);
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(protocol)))?;
        // A raw socket has no ports; IPv6 refuses one that is not zero.
        let sent = socket.send_to(&packet, &SocketAddr::new(target.ip(), 0).into())?;
        ensure!(sent == packet.len(), "only {sent} bytes were sent");
        Ok(())
    }
}

// === impl FrameWay ===

impl FrameWay {
    fn send(self, pod: &Pod, target: SocketAddr, canary: &Canary) -> Result<()> {
        let source = source_of(pod, target);
        let (from, to) = (source.ip(), target.ip());
        let token = canary.as_bytes();
        let data = |flags| frames::segment(source, target, flags, token);
        let packet = match self {
            Self::TcpData => frames::packet(from, to, frames::TCP, &data(frames::PSH_ACK)),
            Self::SynData => frames::packet(from, to, frames::TCP, &data(frames::SYN)),
            Self::Udp => {
                frames::packet(from, to, frames::UDP, &frames::datagram(source, target, token))
            }
            Self::Fragment => frames::fragment(from, to, token),
            Self::Extension => frames::extended(from, to, &data(frames::PSH_ACK)),
        };
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        let index = name_to_index(&socket, POD_DEVICE).context("the pod's device")?;
        syscalls::bind_packet(socket.as_fd(), index)?;
        let frame = frames::ethernet(to, &packet);
        ensure!(socket.send(&frame)? == frame.len(), "the frame was cut");
        Ok(())
    }
}

/// Opens a connection to be used later, when it is older than its pod's enrolment.
pub fn connect_early(pod: &Pod, target: SocketAddr) -> Result<TcpStream> {
    pod.run(|| {
        let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// Sends the canary on an open stream.
pub fn send_on(mut stream: &TcpStream, canary: &Canary) -> Result<()> {
    stream.write_all(canary.as_bytes())?;
    linger(&SockRef::from(stream))
}

fn source_of(pod: &Pod, target: SocketAddr) -> SocketAddr {
    let same = |address: &&IpAddr| address.is_ipv6() == target.is_ipv6();
    let own = pod.addresses.iter().find(same).copied();
    SocketAddr::new(own.unwrap_or(target.ip()), 40_000)
}

/// Waits for an answer, which gives what was sent time to leave before the socket closes.
fn linger(socket: &Socket) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut answer = [0_u8; 64];
    // Refused, cut or silent: the wire says what happened.
    std::io::Read::read(&mut &*socket, &mut answer).ok();
    Ok(())
}
