//! What the datapath remembers about a socket.

use core::{
    mem::{offset_of, size_of},
    net::SocketAddr,
};

use crate::IpKey;

/// What the address in an [`Endpoint`] means to the socket that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// An application's captured connection: the destination it asked for, shown as its peer.
    Captured,
    /// The agent's accepted end of a captured connection: the destination it was meant for.
    Original,
    /// An application's accepted connection: the client behind the agent, shown as its peer.
    Client,
    /// The kubelet's connection to a pod's probe port: the destination that its packets must have.
    Probe,
}

impl EndpointKind {
    const fn byte(self) -> u8 {
        match self {
            Self::Captured => 1,
            Self::Original => 2,
            Self::Client => 3,
            Self::Probe => 4,
        }
    }
}

/// An address and port that a socket's storage remembers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    address: IpKey,
    port: [u8; 2],
    kind: u8,
    padding: u8,
}

const _: () = {
    assert!(size_of::<Endpoint>() == 20);
    assert!(offset_of!(Endpoint, port) == 16);
    assert!(offset_of!(Endpoint, kind) == 18);
};

impl Endpoint {
    /// An endpoint; `port` is in network order.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: IpKey, port: [u8; 2], kind: EndpointKind) -> Self {
        Self { address, port, kind: kind.byte(), padding: 0 }
    }

    /// The same address and port, of another kind.
    #[must_use]
    #[inline(always)]
    pub const fn with_kind(self, kind: EndpointKind) -> Self {
        Self { kind: kind.byte(), ..self }
    }

    /// The address.
    #[must_use]
    #[inline(always)]
    pub const fn address(&self) -> IpKey {
        self.address
    }

    /// The port, in network order.
    #[must_use]
    #[inline(always)]
    pub const fn port(&self) -> [u8; 2] {
        self.port
    }

    /// What the address means; `None` for a byte that no version of this ABI writes.
    #[must_use]
    #[inline(always)]
    pub const fn kind(&self) -> Option<EndpointKind> {
        match self.kind {
            1 => Some(EndpointKind::Captured),
            2 => Some(EndpointKind::Original),
            3 => Some(EndpointKind::Client),
            4 => Some(EndpointKind::Probe),
            _ => None,
        }
    }

    /// The address and port as the standard library's type, with IPv4 in its own family.
    #[must_use]
    pub fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address.ip(), u16::from_be_bytes(self.port))
    }
}

/// What one of the agent's own sockets is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A listener, or a connection to another node: never captured, may pass the guard.
    Bypass,
    /// A connection to an application, which will see the client behind it as its peer.
    Delivery,
}

/// The agent's mark on a socket, which only user space writes, by file descriptor.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AgentSocket {
    client: IpKey,
    client_port: [u8; 2],
    role: u8,
    padding: u8,
}

const _: () = {
    assert!(size_of::<AgentSocket>() == 20);
    assert!(offset_of!(AgentSocket, client_port) == 16);
    assert!(offset_of!(AgentSocket, role) == 18);
};

const BYPASS: u8 = 1;
const DELIVERY: u8 = 2;

impl AgentSocket {
    /// A listener or upstream connection.
    pub const BYPASS: Self =
        Self { client: IpKey::UNSPECIFIED, client_port: [0; 2], role: BYPASS, padding: 0 };

    /// A connection to an application on behalf of `client`.
    #[must_use]
    pub fn delivery(client: SocketAddr) -> Self {
        Self {
            client: client.ip().into(),
            client_port: client.port().to_be_bytes(),
            role: DELIVERY,
            padding: 0,
        }
    }

    /// What the socket is for.
    #[must_use]
    #[inline(always)]
    pub const fn role(&self) -> Role {
        if self.role == DELIVERY { Role::Delivery } else { Role::Bypass }
    }

    /// The client that the application at the other end of a delivery should see.
    #[must_use]
    #[inline(always)]
    pub const fn client(&self) -> Endpoint {
        Endpoint::new(self.client, self.client_port, EndpointKind::Client)
    }
}

/// A connection on its way from connect to accept: namespace and full 4-tuple.
///
/// The tuple alone is not enough: loopback addresses repeat in every namespace, and one source port
/// may be in use from two source addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingKey {
    netns_cookie: u64,
    source: IpKey,
    destination: IpKey,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    padding: [u8; 4],
}

const _: () = {
    assert!(size_of::<PendingKey>() == 48);
    assert!(offset_of!(PendingKey, source) == 8);
    assert!(offset_of!(PendingKey, destination) == 24);
    assert!(offset_of!(PendingKey, source_port) == 40);
    assert!(offset_of!(PendingKey, destination_port) == 42);
};

impl PendingKey {
    /// The connection from `source` to `destination`, each an address and a port in network order.
    #[must_use]
    #[inline(always)]
    pub const fn new(
        netns_cookie: u64,
        source: (IpKey, [u8; 2]),
        destination: (IpKey, [u8; 2]),
    ) -> Self {
        Self {
            netns_cookie,
            source: source.0,
            destination: destination.0,
            source_port: source.1,
            destination_port: destination.1,
            padding: [0; 4],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_reads_back_as_the_socket_address_it_was_made_from() {
        for text in ["10.1.0.2:80", "[fd00:1::2]:65535"] {
            let address: SocketAddr = text.parse().unwrap();
            let endpoint = Endpoint::new(
                address.ip().into(),
                address.port().to_be_bytes(),
                EndpointKind::Captured,
            );
            assert_eq!(endpoint.socket_address(), address);
            assert_eq!(endpoint.with_kind(EndpointKind::Client).socket_address(), address);
        }
    }

    #[test]
    fn every_kind_survives_its_byte_and_zero_is_none() {
        let endpoint = Endpoint::new(IpKey::UNSPECIFIED, [0; 2], EndpointKind::Captured);
        for kind in [
            EndpointKind::Captured,
            EndpointKind::Original,
            EndpointKind::Client,
            EndpointKind::Probe,
        ] {
            assert_eq!(endpoint.with_kind(kind).kind(), Some(kind));
        }
        assert_eq!(Endpoint { kind: 0, ..endpoint }.kind(), None);
    }

    #[test]
    fn a_delivery_carries_its_client() {
        let client: SocketAddr = "203.0.113.9:51000".parse().unwrap();
        let mark = AgentSocket::delivery(client);
        assert_eq!(mark.role(), Role::Delivery);
        assert_eq!(mark.client().socket_address(), client);
        assert_eq!(AgentSocket::BYPASS.role(), Role::Bypass);
    }
}
