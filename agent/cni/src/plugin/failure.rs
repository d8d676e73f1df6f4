//! Errors as a runtime wants them: an object on standard output.

use std::fmt;

use serde_json::json;

use super::NEWEST;

/// Codes of the specification (section 5, "Error"), and ours from 100 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Code {
    /// The configuration is of a version that we do not speak.
    IncompatibleVersion = 1,
    /// A variable is missing or invalid; the message names it.
    InvalidEnvironment = 4,
    /// Standard input cannot be read.
    Io = 5,
    /// Standard input is not JSON, or not an object.
    Decoding = 6,
    /// The configuration does not make sense.
    InvalidConfiguration = 7,
    /// Nothing is wrong with the call; it will succeed later.
    TryAgain = 11,
    /// No pod can be added now.
    Unavailable = 50,
    /// No pod can be added now, and existing ones may be refused their connections.
    UnavailableAndLimited = 51,
    /// The pod is not captured, although the mesh wants it to be.
    NotCaptured = 100,
    /// A mistake in the plugin itself.
    Internal = 101,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of failure.
    pub code: Code,
    /// The failure in a few words.
    pub message: String,
    /// The failure in full, with what to do.
    pub details: String,
}

// === impl Failure ===

impl Failure {
    pub(crate) fn new(code: Code, message: impl Into<String>, details: impl fmt::Display) -> Self {
        Self { code, message: message.into(), details: details.to_string() }
    }

    /// Returns the error object. `version` is the one that the configuration asks for, if that is known.
    pub fn to_json(&self, version: Option<&str>) -> String {
        json!({
            "cniVersion": version.unwrap_or(NEWEST),
            "code": self.code as u32,
            "msg": self.message,
            "details": self.details,
        })
        .to_string()
    }
}
