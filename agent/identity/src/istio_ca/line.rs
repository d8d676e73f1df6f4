//! The connection to the CA. It is made when needed, and the CA is judged by the roots of that moment.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sluice_tls::{Clock, certificates_of_pem, server_verifier};
use tokio::time::Instant;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use super::{AskError, IstioCaSettings};
use crate::words::with_causes;

/// The time limit for connecting, to all addresses of the name together. It is well below the store's limit for a
/// request.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// How long a connection may be idle and still be used. Load balancers forget idle connections without telling anybody,
/// and a new connection may reach another replica.
const MAX_IDLE: Duration = Duration::from_secs(30);

/// The way to the CA.
#[derive(Debug)]
pub(super) struct Line {
    template: Template,
    open: Mutex<Open>,
}

/// What does not change about the CA.
#[derive(Debug)]
struct Template {
    endpoint: Endpoint,
    server_name: Option<String>,
    root_cert: PathBuf,
    clock: Arc<dyn Clock>,
}

#[derive(Debug)]
struct Open {
    /// What `root_cert` held when it was last usable.
    roots: Vec<u8>,
    /// The CA's endpoint, judged by `roots`.
    secured: Endpoint,
    /// The connection, and when it was last used.
    channel: Option<(Channel, Instant)>,
    /// Counts connections, so that a request that fails late does not end its connection's successor.
    made: u64,
}

/// A request on a connection. If it is dropped before it went well, the connection is given up too: without HTTP/2
/// pings (which Go servers punish) nothing else would notice that the other end has vanished.
pub(super) struct Use<'a> {
    line: &'a Line,
    number: u64,
    went_well: bool,
}

// === impl Line ===

impl Line {
    pub(super) fn new(settings: &IstioCaSettings, clock: Arc<dyn Clock>) -> Result<Self, AskError> {
        let address = &settings.address;
        let wrong = |reason: String| AskError::Address { address: address.clone(), reason };
        let endpoint = Endpoint::from_shared(address.clone())
            .map_err(|error| wrong(with_causes("", &error)))?;
        if endpoint.uri().scheme_str() != Some("https") || endpoint.uri().host().is_none() {
            return Err(wrong("it must begin with https://".to_owned()));
        }
        let endpoint = endpoint
            .connect_timeout(CONNECT_LIMIT)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .user_agent(concat!("sluice/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| wrong(with_causes("", &error)))?;
        let server_name = settings.server_name.clone();
        let template =
            Template { endpoint, server_name, root_cert: settings.root_cert.clone(), clock };
        let roots = template.read_roots()?;
        let secured = template.secured(&roots)?;
        let open = Mutex::new(Open { roots, secured, channel: None, made: 0 });
        Ok(Self { template, open })
    }

    /// Returns the present connection, or a new one if there is none, if it was idle, or if the roots have changed.
    pub(super) fn channel(&self) -> (Channel, Use<'_>) {
        let mut open = self.open();
        match self.template.newer(&open.roots) {
            Ok(None) => {}
            Ok(Some((roots, secured))) => {
                tracing::info!(file = %self.template.root_cert.display(), "the CA is judged by new roots");
                *open = Open { roots, secured, channel: None, made: open.made };
            }
            Err(error) => tracing::warn!(%error, "the CA is judged by the roots of before"),
        }
        let now = Instant::now();
        let present = open.channel.take().filter(|(_, used)| *used + MAX_IDLE > now);
        let channel = if let Some((channel, _)) = present {
            channel
        } else {
            open.made += 1;
            open.secured.connect_lazy()
        };
        open.channel = Some((channel.clone(), now));
        (channel, Use { line: self, number: open.made, went_well: false })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Template ===

impl Template {
    /// Reads the file of roots. Returns its content and the endpoint judged by it, or `None` if the content is still
    /// `known`.
    fn newer(&self, known: &[u8]) -> Result<Option<(Vec<u8>, Endpoint)>, AskError> {
        let roots = self.read_roots()?;
        if roots == known {
            return Ok(None);
        }
        let secured = self.secured(&roots)?;
        Ok(Some((roots, secured)))
    }

    fn read_roots(&self) -> Result<Vec<u8>, AskError> {
        let path = &self.root_cert;
        fs::read(path).map_err(|source| AskError::File {
            what: "CA's root",
            path: path.clone(),
            source,
        })
    }

    fn secured(&self, roots: &[u8]) -> Result<Endpoint, AskError> {
        let path = || self.root_cert.clone();
        let roots =
            certificates_of_pem(roots).map_err(|source| AskError::Pem { path: path(), source })?;
        let verifier = server_verifier(&roots, self.clock.clone())
            .map_err(|source| AskError::Roots { path: path(), source })?;
        let mut tls = ClientTlsConfig::new().timeout(CONNECT_LIMIT);
        if let Some(name) = &self.server_name {
            tls = tls.domain_name(name);
        }
        self.endpoint.clone().tls_config_with_verifier(tls, verifier).map_err(|error| {
            let address = self.endpoint.uri().to_string();
            AskError::Address { address, reason: with_causes("", &error) }
        })
    }
}

// === impl Use ===

impl Use<'_> {
    /// Records that the CA answered, whatever it said, so that the connection is kept.
    pub(super) fn went_well(mut self) {
        self.went_well = true;
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        if self.went_well {
            return;
        }
        let mut open = self.line.open();
        if open.made == self.number {
            open.channel = None;
        }
    }
}
