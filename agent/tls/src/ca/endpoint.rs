//! The TLS end of the authority's own server. The authority issues its certificate, which has DNS names, and renews it
//! while it serves. The certificate holds no SPIFFE identity, so no peer of the mesh takes the server for a workload.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use arc_swap::ArcSwap;
use rcgen::{ExtendedKeyUsagePurpose, KeyPair, SanType};
use rustls::{ServerConfig, server::NoServerSessionStorage, version::TLS13};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use zeroize::Zeroizing;

use super::{BACKDATE, LocalCa, leaf_params, random_serial};
use crate::{
    clock::{RustlsTime, after, before},
    provider::provider,
};

/// Why the server has no certificate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Clients could not call the server by this name.
    #[error("{0:?} is neither a DNS name nor an address that a client could ask for")]
    Name(String),
    /// No name was given: no client would accept the server.
    #[error("the server has no name: give at least one that clients call it by")]
    NoName,
    /// The authority may not issue any more.
    #[error("the CA's own certificate has expired; renew it")]
    Expired,
    /// Making the key or the certificate failed.
    #[error("the server's certificate cannot be made: {0}")]
    Making(#[source] rcgen::Error),
    /// The certificate cannot be served.
    #[error("the server's certificate cannot be used: {0}")]
    Unusable(#[source] rustls::Error),
}

/// Accepts TLS 1.3 connections of clients that trust the authority and call the server by one of its names. Clients
/// show no certificate; they prove themselves inside the connection.
#[derive(Debug)]
pub struct Endpoint {
    names: Vec<SanType>,
    protocol: &'static [u8],
    config: ArcSwap<ServerConfig>,
}

/// One accepted connection.
#[derive(Debug)]
pub struct EndpointStream {
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
}

// === impl Endpoint ===

impl Endpoint {
    /// Creates the TLS end of a server that clients call by `names` and that speaks `protocol` (ALPN). Its first
    /// certificate is valid for `ttl`. Returns the certificate's last second with it.
    pub fn open(
        authority: &LocalCa,
        names: &[String],
        protocol: &'static [u8],
        ttl: Duration,
    ) -> Result<(Self, UnixTime), EndpointError> {
        let names =
            names.iter().map(|name| alternative_name(name)).collect::<Result<Vec<_>, _>>()?;
        if names.is_empty() {
            return Err(EndpointError::NoName);
        }
        let (config, not_after) = configure(authority, &names, protocol, ttl)?;
        Ok((Self { names, protocol, config: ArcSwap::from_pointee(config) }, not_after))
    }

    /// Replaces key and certificate for new connections. Returns the new certificate's last second.
    pub fn renew(&self, authority: &LocalCa, ttl: Duration) -> Result<UnixTime, EndpointError> {
        let (config, not_after) = configure(authority, &self.names, self.protocol, ttl)?;
        self.config.store(Arc::new(config));
        Ok(not_after)
    }

    /// Performs the handshake, however long the client takes.
    pub async fn accept(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<EndpointStream> {
        let acceptor = TlsAcceptor::from(self.config.load_full());
        let stream = acceptor.accept(stream).await?;
        if stream.get_ref().1.alpn_protocol() != Some(self.protocol) {
            let protocol = String::from_utf8_lossy(self.protocol);
            return Err(io::Error::other(format!("the client does not speak {protocol} (ALPN)")));
        }
        Ok(EndpointStream { stream, peer })
    }
}

/// Returns `name` as a client checks it: as an address, or as a DNS name.
fn alternative_name(name: &str) -> Result<SanType, EndpointError> {
    let unfit = || EndpointError::Name(name.to_owned());
    match ServerName::try_from(name) {
        Ok(ServerName::IpAddress(address)) => Ok(SanType::IpAddress(address.into())),
        Ok(ServerName::DnsName(name)) => {
            Ok(SanType::DnsName(name.as_ref().try_into().map_err(EndpointError::Making)?))
        }
        Ok(_) | Err(_) => Err(unfit()),
    }
}

fn configure(
    authority: &LocalCa,
    names: &[SanType],
    protocol: &[u8],
    ttl: Duration,
) -> Result<(ServerConfig, UnixTime), EndpointError> {
    let now = authority.clock.now();
    if authority.not_after <= now {
        return Err(EndpointError::Expired);
    }
    let not_after = after(now, ttl).min(authority.not_after);
    let mut leaf = leaf_params(before(now, BACKDATE), not_after);
    leaf.subject_alt_names = names.to_vec();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.serial_number = Some(random_serial());
    let key = Zeroizing::new(KeyPair::generate().map_err(EndpointError::Making)?);
    let leaf = leaf.signed_by(&*key, &authority.issuer).map_err(EndpointError::Making)?;
    let chain = std::iter::once(leaf.into()).chain(authority.intermediates.iter().cloned());
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let time = Arc::new(RustlsTime(Arc::clone(&authority.clock)));
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&TLS13])
        .map_err(EndpointError::Unusable)?
        .with_no_client_auth()
        .with_single_cert(chain.collect(), key)
        .map_err(EndpointError::Unusable)?;
    config.alpn_protocols = vec![protocol.to_vec()];
    // Connections are few and long: resuming would save little, and a session could outlive its certificate.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((config, not_after))
}

// === impl EndpointStream ===

impl EndpointStream {
    /// Returns the client's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl AsyncRead for EndpointStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for EndpointStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
