//! Certificates and TLS: issuing, storing, verifying; the only crate that names rustls.
//!
//! ```text
//! CertStore ── asks ──> Issuer (LocalCa, or a CA elsewhere)
//!     │ one per local workload
//!     └──> Identity ──> client and server connections, judged by ──> TrustBundle at Clock's time
//! ```
//! Each end of a connection proves itself by an X.509-SVID. A client accepts only the one workload
//! that it means to reach; a server accepts only workloads of its own trust domain or a federated
//! one.
#![forbid(unsafe_code)]

mod authority;
mod binding;
pub mod ca;
mod channel;
mod clock;
mod error;
mod expected;
mod identity;
mod issuer;
mod presented;
mod provider;
mod revocation;
mod roots;
mod session;
mod store;
mod svid;
#[cfg(test)]
mod testing;
mod verify;
mod witness;

pub use rustls_pki_types::{CertificateDer, UnixTime};

#[cfg(any(test, feature = "test-util"))]
pub use self::clock::TestClock;
pub use self::{
    authority::AuthorityStatus,
    binding::Binding,
    channel::{Channel, MAX_RECORD_LENGTH, Progress},
    clock::{Clock, SystemClock},
    error::TlsError,
    identity::{ALPN, Identity, Peer, PeerError},
    issuer::{
        CertRequest, ChainError, DEFAULT_TTL, Delivery, IssueError, Issued, IssuedChain, Issuer,
        Issuing, MIN_TTL, MadeKey, News, ServerRootsError, certificates_of_der, server_verifier,
    },
    revocation::{Crl, CrlError, CrlPolicy, DenyList, PatternError, Revocations},
    roots::{RootError, TrustBundle, certificates_of_pem},
    store::{CertStatus, CertStore, Settings, WaitError},
    svid::{Svid, SvidError},
    verify::{PeerRole, VerifyError, verify_chain},
};
