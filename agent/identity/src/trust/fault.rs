//! What can be wrong with a trust file, and what follows from it.

use std::path::PathBuf;

use sluice_tls::{CrlError, PatternError, RootError};

/// What is wrong with a trust file. Each message names the file, and the line where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustFault {
    /// The file or directory cannot be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Unreadable {
        /// The file or directory.
        file: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The roots in it cannot be used.
    #[error("{}: {source}", file.display())]
    Roots {
        /// The file or directory.
        file: PathBuf,
        /// What is wrong with them.
        source: RootError,
    },
    /// Roots that the CA delivered cannot be used.
    #[error("the roots that the CA delivered: {0}")]
    Delivered(#[source] RootError),
    /// The revocation list in it cannot be used.
    #[error("{}: {source}", file.display())]
    Crl {
        /// The file or directory.
        file: PathBuf,
        /// What is wrong with it.
        source: CrlError,
    },
    /// The file is not a YAML list of texts.
    #[error("{}:{line}: {message}; write a list of SPIFFE identities, [] to deny nobody", file.display())]
    Syntax {
        /// The file or directory.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong.
        message: String,
    },
    /// An entry that denies nobody.
    #[error("{}:{line}: {source}", file.display())]
    Denied {
        /// The file or directory.
        file: PathBuf,
        /// Line, from 1.
        line: u64,
        /// What is wrong with it.
        source: PatternError,
    },
    /// The issuer should have published another list by now.
    #[error("{}: the revocation list of {issuer} should have been replaced at {} (Unix time)", file.display(), since)]
    Expired {
        /// The file or directory.
        file: PathBuf,
        /// The issuer that should have published another.
        issuer: String,
        /// When it should have been replaced, in seconds since 1970.
        since: u64,
    },
}
