//! The client of an Istio-compatible CA: `sluice controller`, istiod, cert-manager's istio-csr.
//!
//! The agent proves itself with its service account's token and asks on behalf of its node's pods. Nothing is kept that
//! may go stale: the token and the server's roots are read for every request, and a connection that was idle or failed
//! a request is not used again.

mod error;
mod line;

use std::{path::PathBuf, sync::Arc, time::Duration};

use sluice_grpc::istio_ca::{
    IstioCertificateRequest, IstioCertificateResponse, impersonating,
    istio_certificate_service_client::IstioCertificateServiceClient,
};
use sluice_tls::{CertRequest, Clock, Delivery, IssueError, Issued, Issuer, Issuing};
use tokio::sync::watch;
use tonic::{
    Request,
    metadata::{Ascii, AsciiMetadataValue, MetadataValue},
};

pub use self::error::AskError;
use self::{error::refusal, line::Line};
use crate::{Delivered, words::one_line};

/// The longest answer that is read; no workload's chain comes near it.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
/// The time limit that the CA is told. The store gives up at the same time.
const LIMIT: Duration = Duration::from_secs(5);

/// Where the CA is, and how to speak with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstioCaSettings {
    /// `https://host:port`. A name may have several addresses; each is tried.
    pub address: String,
    /// The name that the server's certificate must hold; the host of `address` by default.
    pub server_name: Option<String>,
    /// The roots that the server is judged by, PEM.
    pub root_cert: PathBuf,
    /// The bearer token: a projected service-account token, which rotates.
    pub token: PathBuf,
    /// The `ClusterID` that Istio's clients send.
    pub cluster_id: String,
    /// Whether the identity is named in the request's metadata (`ImpersonatedIdentity`). Without it a CA gives
    /// out the caller's own identity only.
    pub impersonate: bool,
    /// Whether the roots at the end of an answer are passed on as roots of the mesh.
    pub believe_roots: bool,
}

/// A CA that is asked over gRPC.
#[derive(Debug)]
pub struct IstioCa {
    settings: IstioCaSettings,
    line: Line,
    delivered: watch::Sender<Delivered>,
}

// === impl IstioCa ===

impl IstioCa {
    /// Creates a client that connects at its first request. Fails if the address could never work, or if the file of
    /// roots cannot be used as it is now.
    pub fn new(settings: IstioCaSettings, clock: Arc<dyn Clock>) -> Result<Self, AskError> {
        let line = Line::new(&settings, clock)?;
        Ok(Self { settings, line, delivered: watch::Sender::default() })
    }

    /// Returns a receiver for the roots that came with the last certificate. There are none before that, or without
    /// [`IstioCaSettings::believe_roots`].
    pub fn delivered(&self) -> watch::Receiver<Delivered> {
        self.delivered.subscribe()
    }

    async fn ask(&self, request: CertRequest) -> Result<Issued, IssueError> {
        let id = request.id.clone();
        let answer = self.call(&request).await.map_err(|error| error.about(&id))?;
        let delivery = Delivery::of_pem(&answer.cert_chain)
            .map_err(|source| IssueError::Malformed { id, source })?;
        if self.settings.believe_roots && !delivery.roots.is_empty() {
            self.delivered.send_if_modified(|known| {
                let changed = known.local != delivery.roots;
                known.local = delivery.roots;
                changed
            });
        }
        Ok(Issued::Signed(delivery.chain))
    }

    async fn call(&self, request: &CertRequest) -> Result<IstioCertificateResponse, AskError> {
        let seconds = request.ttl.as_secs();
        let id = request.id.as_str();
        let mut message = Request::new(IstioCertificateRequest {
            csr: request.csr_pem(),
            validity_duration: i64::try_from(seconds).unwrap_or(i64::MAX),
            metadata: self.settings.impersonate.then(|| impersonating(id)),
        });
        message.metadata_mut().insert("authorization", self.bearer()?);
        message.metadata_mut().insert("clusterid", self.cluster()?);
        message.set_timeout(LIMIT);
        let (channel, used) = self.line.channel();
        let mut client =
            IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
        match client.create_certificate(message).await {
            Ok(answer) => {
                used.went_well();
                Ok(answer.into_inner())
            }
            Err(status) => Err(match refusal(&status) {
                Some(rule) => {
                    used.went_well();
                    AskError::Refused(rule)
                }
                None => AskError::failed(&status),
            }),
        }
    }

    fn bearer(&self) -> Result<MetadataValue<Ascii>, AskError> {
        let path = &self.settings.token;
        let token = std::fs::read_to_string(path).map_err(|source| AskError::File {
            what: "token",
            path: path.clone(),
            source,
        })?;
        let token = token.trim();
        let unfit = || AskError::Token { path: path.clone() };
        if token.is_empty() {
            return Err(unfit());
        }
        let mut value =
            AsciiMetadataValue::try_from(format!("Bearer {token}")).map_err(|_invalid| unfit())?;
        value.set_sensitive(true);
        Ok(value)
    }

    fn cluster(&self) -> Result<MetadataValue<Ascii>, AskError> {
        let name = &self.settings.cluster_id;
        AsciiMetadataValue::try_from(name.as_str())
            .map_err(|_invalid| AskError::ClusterId(one_line(name)))
    }
}

impl Issuer for IstioCa {
    fn issue(&self, request: CertRequest) -> Issuing<'_> {
        Box::pin(self.ask(request))
    }
}

#[cfg(test)]
mod tests;
