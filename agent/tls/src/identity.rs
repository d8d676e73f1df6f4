//! One workload's certificate, ready for use: the TLS configurations of its connections.

use std::{
    collections::BTreeSet,
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rustls::{
    ClientConfig, CommonState, Error, HandshakeKind, ServerConfig,
    client::{Resumption, TicketRequest, UnbufferedClientConnection},
    crypto::{CryptoProvider, aws_lc_rs::Ticketer},
    server::{NoServerSessionStorage, ProducesTickets, UnbufferedServerConnection},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use sluice_spiffe::{SpiffeId, TrustDomain};

use crate::{
    clock::{Clock, RustlsTime, after, between},
    expected::expected_name,
    issuer::Certified,
    presented::{Chains, Presented},
    provider::provider,
    roots::TrustBundle,
    session::Sessions,
    svid::Svid,
    verify::{ClientVerifier, ServerVerifier, VerifyError, verify_in_any_role},
    witness::Witness,
};

/// The protocol that agents speak inside TLS.
pub const ALPN: &[u8] = b"sluice/1";

/// Tickets that a server sends after a handshake (RFC 9149): see [`Tickets`].
pub(crate) const TICKETS: Tickets = Tickets { full: 16, resumed: 4 };

/// How many tickets a handshake brings. They let a burst of new connections resume, at less than half the CPU of full
/// handshakes, and without waiting for the first of them to end. Each costs about 5 us at both ends together.
pub(crate) struct Tickets {
    /// After a full handshake, of which there is one in a while: enough for a burst.
    full: u8,
    /// After a resumed one. One replaces the ticket that was used up.
    resumed: u8,
}

/// Counts the certificates that this process has had.
static CERTIFICATES: AtomicU64 = AtomicU64::new(0);

/// The certificate and key of one local workload with everything that its connections need.
///
/// Replaced as a whole when the certificate is renewed or the roots change.
pub struct Identity {
    svid: Svid,
    /// Tells this certificate from every other one of this process.
    number: u64,
    key: Arc<CertifiedKey>,
    /// Which of the trust domains that are offered it believes.
    federates_with: BTreeSet<TrustDomain>,
    /// Narrowed to those.
    trust: Trust,
    tickets: Arc<dyn ProducesTickets>,
    /// The sessions that our clients can resume.
    sessions: Arc<Sessions>,
    chains: Chains,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

/// The roots and the clock by which peers are judged.
#[derive(Clone)]
pub(crate) struct Trust {
    pub(crate) bundle: Arc<TrustBundle>,
    /// Counts the changes of `bundle`.
    pub(crate) generation: u64,
    pub(crate) clock: Arc<dyn Clock>,
}

/// The other end of an established connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub id: SpiffeId,
    /// The chain it presented, leaf first; for [`crate::CertStore::still_vouched`].
    pub chain: Arc<[CertificateDer<'static>]>,
    /// Whether the peer resumed a session instead of presenting the chain anew.
    pub resumed: bool,
    /// Between which moments every certificate of its path is valid.
    pub(crate) valid: (UnixTime, UnixTime),
    /// When a connection that is kept for reuse should give way to a new one; see
    /// [`crate::CertStore::may_reuse`].
    pub(crate) reuse_until: UnixTime,
    /// The generation of trust by which the peer was last judged.
    pub(crate) generation: u64,
    /// The number of our certificate that the peer was shown.
    pub(crate) shown: u64,
}

/// Why an established connection must not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// There is no verified peer before the end of the handshake.
    #[error("the handshake is not complete")]
    Handshaking,
    /// Who the peer is was asked before, and what the answer needs is not kept.
    #[error("who the peer is was asked before")]
    Forgotten,
    /// The two ends have not agreed on the protocol inside TLS.
    #[error("the peer does not speak {} (ALPN)", String::from_utf8_lossy(ALPN))]
    Protocol,
    /// What it presented is not believed, or, when it resumed a session, not any more.
    #[error(transparent)]
    Refused(#[from] VerifyError),
}

// === impl Tickets ===

impl Tickets {
    /// Returns how many a handshake of this kind brings.
    pub(crate) fn after(&self, kind: HandshakeKind) -> usize {
        usize::from(if kind == HandshakeKind::Resumed { self.resumed } else { self.full })
    }
}

// === impl Identity ===

impl Identity {
    /// Makes the configurations for what was `certified`, whose chain `svid` was read from.
    ///
    /// `predecessor` is the identity that this one replaces. Sessions that our server handed out survive a renewal. A
    /// change of roots brings new ticket keys, so nobody resumes what the old roots vouched for. Our clients' sessions
    /// never survive: their tickets hold the old certificate, and the server would go on judging us by it.
    pub(crate) fn new(
        svid: Svid,
        certified: Certified,
        trust: Trust,
        predecessor: Option<&Self>,
    ) -> Result<Self, Error> {
        let Certified { key, federates_with } = certified;
        let trust = Trust { bundle: trust.bundle.narrowed(&federates_with), ..trust };
        let tickets = match predecessor {
            Some(old) if old.trust.generation == trust.generation => old.tickets.clone(),
            _ => Ticketer::new()?,
        };
        let sessions = Arc::new(Sessions::new(trust.clock.clone()));
        let client = Arc::new(client_config(provider(), &key, &trust, &sessions)?);
        let server = Arc::new(server_config(&key, &trust, tickets.clone())?);
        let number = CERTIFICATES.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            svid,
            number,
            key,
            federates_with,
            trust,
            tickets,
            sessions,
            chains: Chains::default(),
            client,
            server,
        })
    }

    /// Returns the same certificate with peers judged by `trust`.
    pub(crate) fn with_trust(&self, trust: Trust) -> Result<Self, Error> {
        let (key, federates_with) = (self.key.clone(), self.federates_with.clone());
        let certified = Certified { key, federates_with };
        let same = Self::new(self.svid.clone(), certified, trust, Some(self))?;
        Ok(Self { number: self.number, ..same })
    }

    /// Returns the number that tells this certificate from every other one of this process.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Which of the trust domains that are offered it believes.
    pub(crate) fn federates_with(&self) -> &BTreeSet<TrustDomain> {
        &self.federates_with
    }

    /// Whom the certificate names.
    pub fn id(&self) -> &SpiffeId {
        &self.svid.id
    }

    /// Returns the readable part of the certificate.
    pub fn svid(&self) -> &Svid {
        &self.svid
    }

    /// Returns the chain that peers are shown, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Returns the generation of the roots by which peers are judged; see [`crate::CertStore::roots_changed`].
    pub fn roots_generation(&self) -> u64 {
        self.trust.generation
    }

    /// Returns whether the certificate is within its validity now.
    pub fn is_valid(&self) -> bool {
        self.svid.is_valid_at(self.trust.clock.now())
    }

    /// Waits a moment if a connection to `expected` at `place` would make a full handshake while another one that will
    /// bring tickets is under way. Call [`crate::Channel::connect`] right after this: it takes the ticket.
    pub async fn acquaintance(&self, expected: &SpiffeId, place: IpAddr) {
        self.sessions.acquaintance(&expected_name(expected, place)).await;
    }

    /// Begins a connection that succeeds only with the workload `expected`. Sessions are remembered separately for each
    /// `place`, because a session can be resumed only with the agent that it was made with.
    pub(crate) fn client_connection(
        &self,
        expected: &SpiffeId,
        place: IpAddr,
    ) -> Result<UnbufferedClientConnection, Error> {
        self.check_valid()?;
        UnbufferedClientConnection::new(self.client.clone(), expected_name(expected, place))
    }

    /// Begins a connection that a workload of our trust domain, or of a federated one, opened.
    pub(crate) fn server_connection(&self) -> Result<UnbufferedServerConnection, Error> {
        self.check_valid()?;
        UnbufferedServerConnection::new(self.server.clone())
    }

    /// Returns who is at the other end of a connection made here, once its handshake is complete.
    ///
    /// Must be called before the first byte is believed: a resumed session brings along the certificates of an earlier
    /// handshake, and rustls does not check their dates again.
    pub(crate) fn peer(&self, connection: &CommonState) -> Result<Peer, PeerError> {
        let chain = connection.peer_certificates();
        let (Some(kind), false) = (connection.handshake_kind(), connection.is_handshaking()) else {
            return Err(PeerError::Handshaking);
        };
        if connection.alpn_protocol() != Some(ALPN) {
            return Err(PeerError::Protocol);
        }
        let chain = chain.unwrap_or_default();
        let now = self.trust.clock.now();
        // In its own role it was judged during the handshake.
        let verify = || verify_in_any_role(&self.trust.bundle, chain, now);
        let Presented { id, chain, valid } = self.chains.read(chain, now, verify)?;
        Ok(Peer {
            id,
            chain,
            resumed: kind == HandshakeKind::Resumed,
            valid,
            reuse_until: half_life(now, valid.1),
            generation: self.trust.generation,
            shown: self.number,
        })
    }

    fn check_valid(&self) -> Result<(), Error> {
        let fault = if self.trust.bundle.revocations().denied().denies(self.id()) {
            "names an identity that is denied, and"
        } else if self.is_valid() {
            return Ok(());
        } else {
            "is outside its validity and"
        };
        Err(Error::General(format!("the certificate of {} {fault} is not offered", self.id())))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("svid", &self.svid).finish_non_exhaustive()
    }
}

/// Returns the moment halfway from `now` to `last`. Workloads renew their certificates at about half life. So a
/// connection made after that moment meets the successor, and nothing depends on the old certificate any more when its
/// root is taken away.
pub(crate) fn half_life(now: UnixTime, last: UnixTime) -> UnixTime {
    after(now, between(now, last) / 2)
}

fn client_config(
    provider: Arc<CryptoProvider>,
    key: &Arc<CertifiedKey>,
    trust: &Trust,
    sessions: &Arc<Sessions>,
) -> Result<ClientConfig, Error> {
    let verifier = Arc::new(ServerVerifier::new(trust.bundle.clone(), sessions.clone()));
    let time = Arc::new(RustlsTime(trust.clock.clone()));
    let mut config = ClientConfig::builder_with_details(provider, time)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::store(sessions.clone());
    config.send_ticket_request =
        Some(TicketRequest { new_session_count: TICKETS.full, resumption_count: TICKETS.resumed });
    config.enable_sni = false;
    config.enable_early_data = false;
    config.key_log = Arc::new(Witness);
    config.enable_secret_extraction = true;
    Ok(config)
}

fn server_config(
    key: &Arc<CertifiedKey>,
    trust: &Trust,
    tickets: Arc<dyn ProducesTickets>,
) -> Result<ServerConfig, Error> {
    let verifier = Arc::new(ClientVerifier::new(trust.bundle.clone()));
    let time = Arc::new(RustlsTime(trust.clock.clone()));
    let mut config = ServerConfig::builder_with_details(provider(), time)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.ticketer = tickets;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // For a client that does not say how many it wants.
    config.send_tls13_tickets = usize::from(TICKETS.resumed);
    config.max_tls13_tickets = usize::from(TICKETS.full);
    config.max_early_data_size = 0;
    config.key_log = Arc::new(Witness);
    config.enable_secret_extraction = true;
    Ok(config)
}

#[cfg(test)]
mod tests;
