//! Certificates and TLS: issuing, storing, verifying; the only crate that names rustls.
