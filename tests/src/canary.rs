//! A token that cannot occur by chance: finding it on a wire means that plaintext went there.

use std::{fmt, fs::File, io::Read};

use anyhow::{Context, Result};

/// A random token of 40 printable bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Canary(String);

impl Canary {
    /// Draws a new token.
    pub fn new() -> Result<Self> {
        let mut random = [0_u8; 16];
        File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut random))
            .context("read /dev/urandom")?;
        Ok(Self(
            random.iter().fold("canary::".to_owned(), |text, byte| format!("{text}{byte:02x}")),
        ))
    }

    /// Returns the token.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the token's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Returns how often the token occurs in `bytes`.
    pub fn count_in(&self, bytes: &[u8]) -> u64 {
        let starts = bytes.windows(self.0.len()).filter(|window| *window == self.as_bytes());
        u64::try_from(starts.count()).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
