//! Hand-made packets, as a pod with raw or packet sockets can send them, and a look at what arrives.

use std::{
    io::{self, Read},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::Pod;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const PUSH_ACK: u8 = 0x18;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

const ETH_P_ALL: u16 = 3;
const IPPROTO_RAW: i32 = 255;

/// An IPv4 packet.
pub(crate) fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let total = u16::try_from(20 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend(total.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

/// The same IPv4 packet with another byte in its header.
pub(crate) fn with_header_byte(packet: &[u8], position: usize, byte: u8) -> Vec<u8> {
    let mut changed = packet.to_vec();
    changed[position] = byte;
    changed[10..12].fill(0);
    let length = usize::from(changed[0] & 0x0f) * 4;
    let sum = checksum(&changed[..length]);
    changed[10..12].copy_from_slice(&sum.to_be_bytes());
    changed
}

/// An IPv6 packet.
pub(crate) fn ipv6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    next_header: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next_header, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// A TCP segment without a checksum, which only a receiving stack would miss.
pub(crate) fn tcp(flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment =
        vec![0x30, 0x39, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0];
    segment.extend(data);
    segment
}

/// A TCP segment between two addresses and ports, with a checksum.
pub(crate) fn tcp_between(
    (source, source_port): (Ipv4Addr, u16),
    (destination, destination_port): (Ipv4Addr, u16),
    flags: u8,
    data: &[u8],
) -> Vec<u8> {
    let mut segment = tcp(flags, data);
    segment[..2].copy_from_slice(&source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&destination_port.to_be_bytes());
    let length = u16::try_from(segment.len()).unwrap().to_be_bytes();
    let mut summed =
        [source.octets(), destination.octets(), [0, TCP, length[0], length[1]]].concat();
    summed.extend(&segment);
    if !summed.len().is_multiple_of(2) {
        summed.push(0);
    }
    segment[16..18].copy_from_slice(&checksum(&summed).to_be_bytes());
    segment
}

/// A UDP datagram without a checksum.
pub(crate) fn udp(data: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0x30, 0x39, 0x1f, 0x90];
    datagram.extend(u16::try_from(8 + data.len()).unwrap().to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

fn checksum(header: &[u8]) -> u16 {
    let words =
        header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap()
}

/// A raw socket of the pod, whose owner builds each packet as a whole.
pub(crate) fn raw_socket(pod: &Pod) -> Socket {
    let socket =
        pod.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW))));
    socket.unwrap()
}

/// Sends an IPv4 packet through a raw socket.
pub(crate) fn send_raw(socket: &Socket, destination: Ipv4Addr, packet: &[u8]) {
    socket.send_to(packet, &SocketAddr::from((destination, 0)).into()).unwrap();
}

/// Sends a frame through a packet socket of the pod, to another pod's interface.
pub(crate) fn send_frame(from: &Pod, to: &Pod, ethertype: u16, payload: &[u8]) {
    let mut frame = Vec::from(hardware_address(to));
    frame.extend(hardware_address(from));
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    let ifindex = from.interface();
    from.run(|| {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).unwrap();
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET.try_into().unwrap(),
            sll_protocol: ethertype.to_be(),
            sll_ifindex: ifindex.cast_signed(),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        let length = size_of::<libc::sockaddr_ll>().try_into().unwrap();
        // SAFETY: a frame and a whole `sockaddr_ll`, each as long as stated.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const address).cast(),
                length,
            )
        };
        assert_eq!(sent, frame.len().cast_signed(), "{}", io::Error::last_os_error());
    });
}

fn hardware_address(pod: &Pod) -> [u8; 6] {
    let text = pod.hardware_address();
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Sees every frame that reaches a pod from the moment the sniffer is made.
pub(crate) struct Sniffer(Socket);

impl Sniffer {
    pub(crate) fn new(pod: &Pod) -> Self {
        let protocol = Protocol::from(i32::from(ETH_P_ALL.to_be()));
        let socket = pod.run(|| Socket::new(Domain::PACKET, Type::RAW, Some(protocol))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Self(socket)
    }

    /// Whether a frame with these bytes arrives soon.
    pub(crate) fn sees(&mut self, marker: &[u8]) -> bool {
        self.sees_within(Duration::from_millis(700), marker)
    }

    /// Whether a frame with these bytes arrives within `time`.
    pub(crate) fn sees_within(&mut self, time: Duration, marker: &[u8]) -> bool {
        let deadline = Instant::now() + time;
        let mut frame = [0; 2048];
        while Instant::now() < deadline {
            if let Ok(length) = self.0.read(&mut frame)
                && frame[..length].windows(marker.len()).any(|window| window == marker)
            {
                return true;
            }
        }
        false
    }
}
