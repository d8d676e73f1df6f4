//! Connection errors, in words that say who was refused and why.

use std::{error, fmt};

use rustls::{CertificateError, Error, OtherError};

use crate::verify::VerifyError;

/// A failed handshake or a broken connection.
///
/// rustls prints a verifier's verdict as a data structure; this type prints it as a sentence.
#[derive(Debug, Clone, PartialEq)]
pub struct TlsError(Error);

impl TlsError {
    /// Returns why the peer's certificate was refused, or `None` if something else went wrong.
    pub fn refusal(&self) -> Option<&VerifyError> {
        if let Error::InvalidCertificate(CertificateError::Other(OtherError(error))) = &self.0 {
            error.downcast_ref()
        } else {
            None
        }
    }
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.refusal() {
            Some(refusal) => refusal.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

impl error::Error for TlsError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.refusal().and_then(error::Error::source)
    }
}
