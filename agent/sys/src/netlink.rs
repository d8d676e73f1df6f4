//! Conversations with the kernel over netlink, message by message.
//!
//! Only the attributes that the agent needs are decoded, so that a newer kernel's additions to a
//! message never keep a pod out of the mesh.

use std::io;

use netlink_packet_core::{
    DecodeError, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
    NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};

use crate::{Error, Netns, Result};

/// How often a dump is tried while changes interrupt it.
const DUMP_ATTEMPTS: usize = 8;

/// A message whose meaning the caller knows: its type and what follows the netlink header.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

/// A netlink socket in one namespace.
pub(crate) struct Channel {
    socket: Socket,
    sequence: u32,
}

/// What the kernel has answered so far.
#[derive(Default)]
struct Conversation {
    answers: Vec<Message>,
    /// Whether the table changed while it was being read.
    inconsistent: bool,
}

// === impl Channel ===

impl Channel {
    /// Opens a channel to the namespace of the calling thread.
    pub(crate) fn here(protocol: isize) -> Result<Self> {
        Self::new(protocol).map_err(|source| Error::Netlink { what: "open a channel", source })
    }

    /// Opens a channel to `netns`, which may be used on any thread.
    pub(crate) fn inside(netns: &Netns, protocol: isize) -> Result<Self> {
        netns.run(|| Self::here(protocol))?
    }

    fn new(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Returns every object of the requested kind.
    pub(crate) fn dump(&mut self, what: &'static str, request: &Message) -> Result<Vec<Message>> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.exchange(request, NLM_F_DUMP) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                answer => return answer.map_err(|source| Error::Netlink { what, source }),
            }
        }
        let source = io::Error::other("it changes faster than it can be read");
        Err(Error::Netlink { what, source })
    }

    /// Sends one request and returns the answer, which is empty if the kernel merely acknowledges.
    pub(crate) fn ask(&mut self, request: &Message) -> io::Result<Vec<Message>> {
        self.exchange(request, NLM_F_ACK)
    }

    fn exchange(&mut self, request: &Message, flags: u16) -> io::Result<Vec<Message>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut conversation = Conversation::default();
        while !conversation.take(&self.receive()?, self.sequence)? {}
        if conversation.inconsistent {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(conversation.answers)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => return Ok(datagram),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

// === impl Conversation ===

impl Conversation {
    /// Takes in one datagram. Returns true if it ends the conversation.
    fn take(&mut self, datagram: &[u8], sequence: u32) -> io::Result<bool> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkMessage::<Message>::deserialize(rest).map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).map_err(io::Error::other)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if message.header.sequence_number == sequence && self.take_message(message)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn take_message(&mut self, message: NetlinkMessage<Message>) -> io::Result<bool> {
        self.inconsistent |= message.header.flags & NLM_F_DUMP_INTR != 0;
        match message.payload {
            NetlinkPayload::InnerMessage(answer) => self.answers.push(answer),
            NetlinkPayload::Done(done) if done.code == 0 => return Ok(true),
            NetlinkPayload::Done(done) => {
                return Err(io::Error::from_raw_os_error(done.code.saturating_neg()));
            }
            NetlinkPayload::Error(error) if error.code.is_none() => return Ok(true),
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            NetlinkPayload::Noop | _ => {}
        }
        Ok(false)
    }
}

// === impl Message ===

impl Message {
    /// The attributes that follow a fixed part of `skip` bytes, as (type, value). They end at the
    /// first one that does not parse.
    pub(crate) fn attributes(&self, skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
        attributes(self.body.get(skip..).unwrap_or_default())
    }

    /// The four bytes at `offset` of the fixed part.
    pub(crate) fn word(&self, offset: usize) -> Option<u32> {
        self.body.get(offset..)?.first_chunk().copied().map(u32::from_ne_bytes)
    }
}

/// The attributes in `bytes`, as (type, value).
pub(crate) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(NLA_HEADER_SIZE..length)?))
    })
}

impl NetlinkSerializable for &Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.body.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.body);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { kind: header.message_type, body: payload.to_vec() })
    }
}
