//! What rustls asks during a handshake: whether the peer's certificate is believed.

use std::sync::Arc;

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{PeerRole, VerifyError, verify};
use crate::{expected, provider::provider, roots::TrustBundle, session::Sessions};

/// Judges servers for one identity's client connections.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    bundle: Arc<TrustBundle>,
    sessions: Arc<Sessions>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Judges clients for one identity's server connections.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    bundle: Arc<TrustBundle>,
    algorithms: WebPkiSupportedAlgorithms,
}

// === impl VerifyError ===

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        // `Other` keeps our words; the peer is told `certificate_unknown`.
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    }
}

// === impl ServerVerifier ===

impl ServerVerifier {
    pub(crate) fn new(bundle: Arc<TrustBundle>, sessions: Arc<Sessions>) -> Self {
        Self { bundle, sessions, algorithms: provider().signature_verification_algorithms }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = verify(&self.bundle, end_entity, intermediates, PeerRole::Server, now)?;
        if !expected::is_name_of(server_name, &verified.svid.id) {
            return Err(VerifyError::Unexpected { presented: verified.svid.id }.into());
        }
        self.sessions.server_verified(server_name, verified.valid.1);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

// === impl ClientVerifier ===

impl ClientVerifier {
    pub(crate) fn new(bundle: Arc<TrustBundle>) -> Self {
        Self { bundle, algorithms: provider().signature_verification_algorithms }
    }
}

impl ClientCertVerifier for ClientVerifier {
    /// None: an agent has one certificate per identity and needs no hint which to choose.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        verify(&self.bundle, end_entity, intermediates, PeerRole::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn only_tls13() -> Error {
    Error::General("a TLS 1.2 signature was asked for, but only TLS 1.3 is spoken".to_owned())
}
