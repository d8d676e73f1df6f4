//! What an eavesdropper on one link sees: the canary in any frame, TLS records per TCP port.
//!
//! A packet socket taps a device before the traffic control layer on the way in and after it on the
//! way out. To learn whether a frame *reached* the peer, capture on the link between the nodes or on
//! the receiver's device, not on the sender's: the guard drops later than the tap there.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::net::{netdevice::name_to_index, sockopt};
use socket2::{Domain, Socket, Type};

use crate::{Canary, Netns, NodeName, World, syscalls, world::LINK};

/// The size of the receive buffer: enough for the tests' bursts. A loss is an error, see [`Seen::lost`].
const BUFFER: usize = 64 << 20;
/// How long the sniffer waits for a frame before it looks up from the socket.
const TURN: Duration = Duration::from_millis(20);
const ETHERNET: usize = 14;
/// `PACKET_STATISTICS` of `linux/if_packet.h`.
const PACKET_STATISTICS: i32 = 6;

/// A running capture on one device.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    socket: Arc<Socket>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    seen: Mutex<Seen>,
    idle_turns: AtomicU64,
    stop: AtomicBool,
}

/// What a capture has seen so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The number of frames.
    pub frames: u64,
    /// The number of bytes in these frames.
    pub bytes: u64,
    /// Occurrences of the canary, within frames and across consecutive segments of a connection.
    pub canaries: u64,
    /// When the first canary was seen.
    pub first_canary: Option<Instant>,
    /// Frames that the sniffer missed; if there are any, "no canary" is worthless.
    pub lost: u64,
    /// TCP segments that begin with a TLS record, by the lower port, which is the well-known one.
    pub tls_records: BTreeMap<u16, u64>,
    /// TCP segments with payload, by the lower port.
    pub data_segments: BTreeMap<u16, u64>,
}

type Flow = (IpAddr, IpAddr, u16, u16);

// === impl Capture ===

impl Capture {
    /// Starts watching `device` of `netns`; returns once frames are being recorded.
    pub fn start(netns: &Netns, device: &str, canary: &Canary) -> Result<Self> {
        let socket = netns.run(|| {
            // Opened without a protocol until it is bound: no other device's frames get in.
            let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("packet socket")?;
            sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
            let index = name_to_index(&socket, device)?;
            syscalls::bind_packet(socket.as_fd(), index)?;
            socket.set_read_timeout(Some(TURN))?;
            Ok(socket)
        });
        let socket = socket.with_context(|| format!("capture on {device} of {}", netns.name()))?;
        let shared = Arc::new(Shared {
            seen: Mutex::default(),
            idle_turns: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let socket = Arc::new(socket);
        let sniffer = Sniffer { canary: canary.clone(), tails: HashMap::new() };
        let thread = thread::Builder::new().name("capture".to_owned()).spawn({
            let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
            move || sniffer.run(&shared, &socket)
        })?;
        Ok(Self { shared, socket, thread: Some(thread) })
    }

    /// Starts watching the link between the nodes.
    pub fn between_nodes(world: &World, canary: &Canary) -> Result<Self> {
        Self::start(world.node(NodeName::A), LINK, canary)
    }

    /// Returns what has been seen, once the queue has run empty.
    pub fn seen(&self) -> Result<Seen> {
        let before = self.shared.idle_turns.load(Ordering::Acquire);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.shared.idle_turns.load(Ordering::Acquire) < before + 2 {
            // A busy link is never idle; then what has been read by now has to do.
            if Instant::now() > deadline {
                break;
            }
            thread::sleep(TURN / 4);
        }
        let statistics: [u8; 8] =
            syscalls::get_option(self.socket.as_fd(), libc::SOL_PACKET, PACKET_STATISTICS)?;
        let [_, _, _, _, dropped @ ..] = statistics;
        let mut seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // The kernel's counter starts at zero again after every reading.
        seen.lost += u64::from(u32::from_ne_bytes(dropped));
        Ok(seen.clone())
    }

    /// Polls until the canary has been seen: the positive control of every leak test.
    pub fn wait_for_canary(&self, patience: Duration) -> Result<Seen> {
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.seen()?;
            if seen.canaries > 0 {
                return Ok(seen);
            }
            ensure!(Instant::now() < deadline, "no canary within {patience:?}: {seen:?}");
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A sniffer that panicked has nothing left to stop.
            thread.join().ok();
        }
    }
}

// === impl Seen ===

impl Seen {
    fn count_canaries(&mut self, count: u64) {
        self.canaries += count;
        if count > 0 {
            self.first_canary.get_or_insert_with(Instant::now);
        }
    }

    /// Fails unless the wire was watched without a gap, carried TLS on `port`, and never carried the canary.
    pub fn ensure_tls_only(&self, port: u16) -> Result<()> {
        self.ensure_no_canary()?;
        let records = self.tls_records.get(&port).copied().unwrap_or(0);
        ensure!(records > 0, "no TLS record on port {port}: nothing was shown ({self:?})");
        Ok(())
    }

    /// Fails unless the wire was watched without a gap and never carried the canary.
    pub fn ensure_no_canary(&self) -> Result<()> {
        ensure!(self.lost == 0, "the capture lost {} frames: it proves nothing", self.lost);
        match self.canaries {
            0 => Ok(()),
            seen => Err(anyhow!("the canary was on the wire {seen} times: {self:?}")),
        }
    }

    /// Returns the number of TLS records on `port`.
    pub fn tls_on(&self, port: u16) -> u64 {
        self.tls_records.get(&port).copied().unwrap_or(0)
    }
}

struct Sniffer {
    canary: Canary,
    /// The end of each connection's last segment, for a canary that straddles two.
    tails: HashMap<Flow, Vec<u8>>,
}

impl Sniffer {
    fn run(mut self, shared: &Shared, socket: &Socket) {
        let mut buffer = vec![0_u8; 1 << 17];
        while !shared.stop.load(Ordering::Acquire) {
            match std::io::Read::read(&mut &*socket, &mut buffer) {
                Ok(length) => {
                    let frame = buffer.get(..length).unwrap_or_default();
                    let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
                    self.account(frame, &mut seen);
                }
                // Timed out, or the device went down: both are turns without a frame.
                Err(_) => {
                    shared.idle_turns.fetch_add(1, Ordering::Release);
                }
            }
        }
    }

    fn account(&mut self, frame: &[u8], seen: &mut Seen) {
        seen.frames += 1;
        seen.bytes += u64::try_from(frame.len()).unwrap_or(0);
        seen.count_canaries(self.canary.count_in(frame));
        let Some(segment) = Segment::parse(frame) else { return };
        if segment.payload.is_empty() {
            return;
        }
        let (_, _, source, destination) = segment.flow;
        let port = source.min(destination);
        *seen.data_segments.entry(port).or_default() += 1;
        if segment.starts_tls_record() {
            *seen.tls_records.entry(port).or_default() += 1;
        }
        seen.count_canaries(self.straddling(&segment));
    }

    fn straddling(&mut self, segment: &Segment<'_>) -> u64 {
        let kept = self.canary.as_bytes().len() - 1;
        let tail = self.tails.entry(segment.flow).or_default();
        let head = segment.payload.get(..kept.min(segment.payload.len())).unwrap_or_default();
        let mut joint = std::mem::take(tail);
        joint.extend_from_slice(head);
        // Both halves are shorter than the token: one that is found here straddles them.
        let found = self.canary.count_in(&joint);
        let mut recent =
            if segment.payload.len() < kept { joint } else { segment.payload.to_vec() };
        recent.drain(..recent.len().saturating_sub(kept));
        *tail = recent;
        found
    }
}

/// One TCP segment inside an Ethernet frame.
struct Segment<'a> {
    flow: Flow,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(ETHERNET..)?;
        let (source, destination, segment): (IpAddr, IpAddr, &[u8]) = match *packet.first()? >> 4 {
            4 => {
                let header = usize::from(*packet.first()? & 15) * 4;
                let total = usize::from(u16::from_be_bytes(*packet.get(2..)?.first_chunk()?));
                (*packet.get(9)? == 6).then_some(())?;
                let source: [u8; 4] = *packet.get(12..)?.first_chunk()?;
                let destination: [u8; 4] = *packet.get(16..)?.first_chunk()?;
                let end = total.min(packet.len());
                (
                    Ipv4Addr::from(source).into(),
                    Ipv4Addr::from(destination).into(),
                    packet.get(header..end)?,
                )
            }
            6 => {
                let length = usize::from(u16::from_be_bytes(*packet.get(4..)?.first_chunk()?));
                (*packet.get(6)? == 6).then_some(())?;
                let source: [u8; 16] = *packet.get(8..)?.first_chunk()?;
                let destination: [u8; 16] = *packet.get(24..)?.first_chunk()?;
                let end = (40 + length).min(packet.len());
                (
                    Ipv6Addr::from(source).into(),
                    Ipv6Addr::from(destination).into(),
                    packet.get(40..end)?,
                )
            }
            _ => return None,
        };
        let ports: (u16, u16) = (
            u16::from_be_bytes(*segment.first_chunk()?),
            u16::from_be_bytes(*segment.get(2..)?.first_chunk()?),
        );
        let header = usize::from(*segment.get(12)? >> 4) * 4;
        let payload = segment.get(header..)?;
        Some(Self { flow: (source, destination, ports.0, ports.1), payload })
    }

    /// Returns whether the payload begins with a TLS record: change-cipher-spec, alert, handshake or application data,
    /// of version 3.1 or 3.3.
    fn starts_tls_record(&self) -> bool {
        matches!(self.payload, [0x14..=0x17, 0x03, 0x01 | 0x03, ..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0_u8; ETHERNET];
        let total = u16::try_from(40 + payload.len()).unwrap().to_be_bytes();
        frame.extend([0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 6, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0x1f, 0x90, 0xc3, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend_from_slice(payload);
        frame
    }

    fn seen_of(payloads: &[&[u8]], canary: &Canary) -> Seen {
        let mut sniffer = Sniffer { canary: canary.clone(), tails: HashMap::new() };
        let mut seen = Seen::default();
        for payload in payloads {
            sniffer.account(&frame(payload), &mut seen);
        }
        seen
    }

    #[test]
    fn a_canary_is_found_within_and_across_segments() {
        let canary = Canary::new().unwrap();
        let token = canary.as_bytes();
        assert_eq!(seen_of(&[token], &canary).canaries, 1);
        for cut in 1..token.len() {
            let (head, tail) = token.split_at(cut);
            assert_eq!(seen_of(&[head, tail], &canary).canaries, 1, "cut at {cut}");
        }
        let bytewise: Vec<&[u8]> = token.chunks(1).collect();
        assert_eq!(seen_of(&bytewise, &canary).canaries, 1);
    }

    #[test]
    fn tls_records_are_counted_by_the_lower_port() {
        let canary = Canary::new().unwrap();
        let seen = seen_of(&[&[0x16, 3, 1, 0, 5], b"GET / HTTP/1.1", &[0x17, 3, 3, 0, 1]], &canary);
        assert_eq!(seen.tls_on(8080), 2);
        assert_eq!(seen.data_segments.get(&8080), Some(&3));
    }
}
