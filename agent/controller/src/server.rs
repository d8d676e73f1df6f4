//! The server: puts the parts together and serves until it is told to stop.

use std::{future::Future, sync::Arc, time::Duration};

use sluice_grpc::istio_ca::istio_certificate_service_server::IstioCertificateServiceServer;
use sluice_spiffe::TrustDomain;
use sluice_tls::Clock;
use tokio::{net::TcpListener, sync::mpsc};
use tonic::transport::Server;

use crate::{
    CaMaterial, Callers, OpenError, Placement, Standing,
    authority::Authority,
    door::Door,
    issue::CertificateService,
    listener,
    rate::{Buckets, Rate},
};

// Requests are read before it is known who sends them. By these bounds a connection holds half a MiB at most, and
// those that have proved nothing ([`Limits::unproved`]) an eighth of a GiB together: half of what the chart allows.

/// A request is a CSR of about 500 bytes (2 KiB with an RSA key) and an identity of at most 2,048.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
/// A token is at most half of it.
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Requests that one connection may have open at once: twice what an agent ever has, since a client that has not
/// heard of it yet loses those beyond.
const MAX_STREAMS: u32 = 16;
/// What may be on its way unread, of a request and of a connection (RFC 9113 section 6.9.2 has no less for that).
const STREAM_WINDOW: u32 = 16 * 1024;
const CONNECTION_WINDOW: u32 = 65_535;
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a connection may live: long enough for an agent's renewals to share it, short enough that an unused one
/// does not stay.
const MAX_CONNECTION_AGE: Duration = Duration::from_mins(10);
const CONNECTION_GRACE: Duration = Duration::from_secs(10);
/// How often refusals of strangers are logged.
const TOLD: Rate = Rate { per_second: 1, burst: 10 };

/// What the controller issues.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The trust domain whose workloads the controller issues for.
    pub trust_domain: TrustDomain,
    /// The longest lifetime that it grants, at least a minute; also that of its own certificate.
    pub ttl: Duration,
    /// The names and addresses that clients call it by.
    pub server_names: Vec<String>,
    /// Bounds on what clients may use up.
    pub limits: Limits,
}

/// Bounds on what clients may use up.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Certificates for each caller. By default 100 a second, 2,000 at once: more than a large node's agent needs when
    /// it starts with every pod.
    pub issued: Rate,
    /// Tokens that are judged for each address although they have proved nothing yet. By default 5 a second, 100 at
    /// once.
    pub strangers: Rate,
    /// Connections at once. 4,096 by default. Of these and of those below, the oldest that has proved nothing makes
    /// room for a new one; where all have, the new one is closed.
    pub connections: usize,
    /// Connections from one address at once. 64 by default.
    pub connections_per_address: usize,
    /// Connections at once on which no token was good yet. 256 by default.
    pub unproved: usize,
    /// Those of them that come from one IPv4 address or one /64 of IPv6. 16 by default.
    pub unproved_per_network: usize,
    /// How long such a connection may last; 10 s by default.
    pub proof: Duration,
    /// How long a TLS handshake may take; 5 s by default.
    pub handshake: Duration,
    /// How long a request may take; 10 s by default.
    pub request: Duration,
}

/// What the controller relies on.
#[derive(Clone)]
pub struct Parts {
    /// Tells who calls.
    pub callers: Arc<dyn Callers>,
    /// Tells which pods run where.
    pub placement: Arc<dyn Placement>,
    /// The authority's key and certificate.
    pub material: Arc<dyn CaMaterial>,
    /// The clock that dates every certificate.
    pub clock: Arc<dyn Clock>,
    /// Counts what was issued and refused.
    pub standing: Arc<Standing>,
}

/// Why the controller does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The authority, or the server's own certificate, cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// gRPC failed as a whole.
    #[error("the gRPC server ended: {0}")]
    Grpc(#[from] tonic::transport::Error),
}

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            issued: Rate { per_second: 100, burst: 2_000 },
            strangers: Rate { per_second: 5, burst: 100 },
            connections: 4_096,
            connections_per_address: 64,
            unproved: 256,
            unproved_per_network: 16,
            proof: Duration::from_secs(10),
            handshake: Duration::from_secs(5),
            request: Duration::from_secs(10),
        }
    }
}

/// Serves on `listener` until `stop` completes; requests that are under way are then finished.
pub async fn serve(
    listener: TcpListener,
    settings: Settings,
    parts: Parts,
    stop: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let Settings { ttl, limits, .. } = settings;
    let Parts { callers, placement, material, clock, standing } = parts;
    let known = Arc::clone(&standing);
    let authority = Arc::new(Authority::open(&settings, material, clock, known).await?);
    let service = CertificateService {
        authority: Arc::clone(&authority),
        callers,
        placement,
        ttl,
        granted: Buckets::new(limits.issued),
        door: Door::new(limits.strangers),
        told: Buckets::new(TOLD),
        standing,
    };
    let service =
        IstioCertificateServiceServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES);
    let (ready, mut connections) = mpsc::channel(16);
    let incoming = futures_util::stream::poll_fn(move |context| connections.poll_recv(context));
    let server = Server::builder()
        .timeout(limits.request)
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .max_connection_age(MAX_CONNECTION_AGE)
        .max_connection_age_grace(CONNECTION_GRACE)
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, stop);
    let accepting = listener::accept(listener, Arc::clone(&authority), limits, ready);
    let beside = async {
        tokio::join!(accepting, authority.follow());
    };
    tokio::select! {
        result = server => Ok(result?),
        () = beside => Ok(()),
    }
}
