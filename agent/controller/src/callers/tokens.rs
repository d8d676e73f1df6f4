//! Tokens in a file, for one machine and for tests: `[{token: ..., node: ...}]`.
//!
//! Only their SHA-256 is kept, and a token is compared with all of them in constant time, so neither memory nor timing
//! gives one away.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use sluice_files::Stamp;
use sluice_source::{FileError, yaml};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{Caller, Callers};
use crate::{Pending, Refusal, material::POLL};

/// The shortest token that is accepted: a shorter one could be guessed.
const MIN_TOKEN_BYTES: usize = 32;

/// Why the file's tokens cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others on the machine could read the tokens, or add one.
    #[error("{}: may be read or changed by others (mode {mode:o}): set mode 600, and replace the tokens if they may be known", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not the expected YAML. What it holds instead is not shown: it may be a token.
    #[error("{}:{line}: must be a list of {{token: ..., node: ...}} and nothing else", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
    },
    /// The file holds nothing, as happens while it is written.
    #[error("{}: is empty: write [] to admit nobody", path.display())]
    Emptied {
        /// The file.
        path: PathBuf,
    },
    /// An entry is unusable.
    #[error("{}:[{position}]: {fault}", path.display())]
    Entry {
        /// The file.
        path: PathBuf,
        /// Which entry, from 0.
        position: usize,
        /// What is wrong with it.
        fault: &'static str,
    },
}

/// The callers that a file lists. A request checks the file again if a second has passed since the last check, and
/// already sees the change. A file that is gone admits nobody; if it is faulty, its last good version stays in force.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    tokens: ArcSwap<Vec<Token>>,
    seen: Mutex<(Stamp, Instant)>,
}

#[derive(Debug)]
struct Token {
    digest: [u8; 32],
    caller: Caller,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    token: String,
    node: String,
}

// === impl TokenFile ===

impl TokenFile {
    /// Reads the file, which must be sound now.
    pub fn open(path: &Path) -> Result<Self, TokenError> {
        let stamp = Stamp::of(path);
        let tokens = read(path)?;
        Ok(Self {
            path: path.to_owned(),
            tokens: ArcSwap::from_pointee(tokens),
            seen: Mutex::new((stamp, Instant::now())),
        })
    }

    fn refresh(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.1.elapsed() < POLL {
            return;
        }
        let stamp = Stamp::of(&self.path);
        if stamp != seen.0 {
            self.reload();
        }
        *seen = (stamp, Instant::now());
    }

    fn reload(&self) {
        let path = self.path.display();
        match read(&self.path) {
            Ok(tokens) => {
                tracing::info!(%path, tokens = tokens.len(), "read callers' tokens anew");
                self.tokens.store(Arc::new(tokens));
            }
            Err(TokenError::Unreadable { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                tracing::error!(%path, "the callers' tokens are gone: nobody is admitted");
                self.tokens.store(Arc::default());
            }
            Err(error) => {
                tracing::error!(%error, "the callers' tokens stay as they were before");
            }
        }
    }

    fn find(&self, bearer: &str) -> Option<Caller> {
        let digest: [u8; 32] = Sha256::digest(bearer).into();
        let tokens = self.tokens.load();
        let (mut found, mut index) = (Choice::from(0), 0_u64);
        for (position, token) in (0_u64..).zip(tokens.iter()) {
            let same = token.digest.ct_eq(&digest);
            index.conditional_assign(&position, same);
            found |= same;
        }
        let token = usize::try_from(index).ok().and_then(|index| tokens.get(index))?;
        bool::from(found).then(|| token.caller.clone())
    }
}

impl Callers for TokenFile {
    fn authenticate<'a>(&'a self, bearer: &'a str) -> Pending<'a, Result<Caller, Refusal>> {
        self.refresh();
        let unknown = || Refusal::BadToken { reason: "it is in no entry".to_owned() };
        Box::pin(std::future::ready(self.find(bearer).ok_or_else(unknown)))
    }
}

fn read(path: &Path) -> Result<Vec<Token>, TokenError> {
    let unreadable = |source| TokenError::Unreadable { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(unreadable)?.mode() & 0o777;
    if mode & 0o027 != 0 {
        return Err(TokenError::Exposed { path: path.to_owned(), mode });
    }
    let text = fs::read_to_string(path).map_err(unreadable)?;
    if text.trim().is_empty() {
        return Err(TokenError::Emptied { path: path.to_owned() });
    }
    let syntax = |error: &FileError| TokenError::Syntax {
        path: path.to_owned(),
        line: if let FileError::Syntax { line, .. } = error { *line } else { 1 },
    };
    let written: Vec<Written> = yaml::parse(path, &text).map_err(|error| syntax(&error))?;
    let mut known = BTreeSet::new();
    let mut tokens = Vec::with_capacity(written.len());
    for (position, Written { token, node }) in written.into_iter().enumerate() {
        let refuse = |fault| TokenError::Entry { path: path.to_owned(), position, fault };
        if token.len() < MIN_TOKEN_BYTES {
            return Err(refuse("the token is shorter than 32 bytes: make it of random bytes"));
        }
        if node.is_empty() {
            return Err(refuse("the node has no name: write whose pods the token is good for"));
        }
        let digest: [u8; 32] = Sha256::digest(&token).into();
        if !known.insert(digest) {
            return Err(refuse("another entry has the same token: give each node its own"));
        }
        tokens.push(Token { digest, caller: Caller { name: format!("agent of {node}"), node } });
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn file(text: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.yaml");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    #[test]
    fn a_token_names_its_node_and_nothing_like_it_does() {
        let b = A.replace('a', "b");
        let text = format!("- {{token: {A}, node: one}}\n- {{token: {b}, node: two}}\n");
        let (_dir, path) = file(&text, 0o600);
        let tokens = TokenFile::open(&path).unwrap();
        assert_eq!(tokens.find(A).unwrap().node, "one");
        assert_eq!(tokens.find(&b).unwrap().node, "two");
        let extended = format!("{A}a");
        for other in ["", &A[1..], &extended, "one", &A.to_uppercase()] {
            assert_eq!(tokens.find(other), None, "{other}");
        }
    }

    #[test]
    fn a_file_that_admits_more_than_it_says_is_refused() {
        for (text, mode, fault) in [
            (format!("- {{token: {A}, node: one}}"), 0o644, "mode 600"),
            (format!("- {{token: {A}, node: one}}"), 0o620, "mode 600"),
            (String::new(), 0o600, "write []"),
            ("- {token: short, node: one}".to_owned(), 0o600, "shorter than 32"),
            (format!("- {{token: {A}, node: ''}}"), 0o600, "no name"),
            (format!("- {{token: {A}, node: a}}\n- {{token: {A}, node: b}}"), 0o600, "the same"),
            (format!("- {{token: {A}, node: a, nodes: b}}"), 0o600, "must be a list"),
            (format!("- {A}"), 0o600, "must be a list"),
        ] {
            let (_dir, path) = file(&text, mode);
            let error = TokenFile::open(&path).unwrap_err().to_string();
            assert!(error.contains(fault), "{error}");
            assert!(!error.contains(A), "an error shows a token: {error}");
        }
        assert!(TokenFile::open(Path::new("/nonexistent/tokens")).is_err());
    }

    #[test]
    fn no_token_is_shown() {
        let (_dir, path) = file(&format!("- {{token: {A}, node: one}}"), 0o600);
        assert!(!format!("{:?}", TokenFile::open(&path).unwrap()).contains(A));
    }
}
