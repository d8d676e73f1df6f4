//! Judges the certificate of a CA's server as its clients do: by name, root and the injected time.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        VerifierBuilderError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{clock::Clock, provider::provider};

/// Why there is no verifier for a CA's server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerRootsError {
    /// A certificate cannot be a root.
    #[error("certificate {position} cannot be a root: {source}")]
    Unusable {
        /// Which one, from 1.
        position: usize,
        /// What is wrong with it.
        source: Error,
    },
    /// There is no root to judge by.
    #[error("there is no root certificate: {0}")]
    Empty(#[from] VerifierBuilderError),
}

/// rustls' own verifier at another clock's time.
#[derive(Debug)]
struct AtClock {
    inner: Arc<WebPkiServerVerifier>,
    clock: Arc<dyn Clock>,
}

/// Creates a verifier that judges a server by `roots`, the name that was dialled and `clock`. It serves for connections
/// to a CA, which are not between workloads.
pub fn server_verifier(
    roots: &[CertificateDer<'static>],
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn ServerCertVerifier>, ServerRootsError> {
    let mut store = RootCertStore::empty();
    for (index, root) in roots.iter().enumerate() {
        let unusable = |source| ServerRootsError::Unusable { position: index + 1, source };
        store.add(root.clone()).map_err(unusable)?;
    }
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(store), provider()).build()?;
    Ok(Arc::new(AtClock { inner, clock }))
}

impl ServerCertVerifier for AtClock {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.inner.verify_server_cert(leaf, intermediates, name, ocsp, self.clock.now())
    }

    // Only TLS 1.3 is spoken, whatever the library around this offers.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
