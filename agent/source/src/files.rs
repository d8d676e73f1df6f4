//! The files themselves: which there are, whether they changed, what they hold.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
};

use sluice_files::{Followed, Stamp};

use crate::{FileError, SourceConfig, config::AgentConfig};

/// The paths that are followed.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    pub(crate) mesh: PathBuf,
    pub(crate) policies: Option<PathBuf>,
}

/// What the file system says about all the files; equal as long as nothing has changed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    mesh: Stamp,
    policies: Option<Result<Vec<(PathBuf, Stamp)>, io::ErrorKind>>,
}

/// The contents of the files.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) mesh: Result<String, FileError>,
    /// `None` without a directory of policies.
    pub(crate) policies: Option<Result<Vec<PolicyText>, FileError>>,
}

/// One file of the directory of policies.
#[derive(Debug)]
pub(crate) struct PolicyText {
    /// The file's name within the directory, which identifies it across versions.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) text: Result<String, FileError>,
}

// === impl Files ===

impl Files {
    /// Returns the configured files, or `None` if the state of the mesh has another source.
    pub(crate) fn of(config: &AgentConfig) -> Option<Self> {
        match config.source.clone() {
            SourceConfig::Files { mesh, policies } => Some(Self { mesh, policies }),
            SourceConfig::Kubernetes(_) => None,
        }
    }
}

impl Followed for Files {
    type Seen = Seen;
    type Contents = Contents;

    fn look(&self) -> Seen {
        let policies = self.policies.as_deref().map(|directory| {
            let files = policy_files(directory).map_err(|error| error.kind())?;
            Ok(files.into_iter().map(|(_, path)| (path.clone(), Stamp::of(&path))).collect())
        });
        Seen { mesh: Stamp::of(&self.mesh), policies }
    }

    fn read(&self, _: &Seen) -> Contents {
        let policies = self.policies.as_deref().map(|directory| {
            let files = policy_files(directory).map_err(|error| unreadable(directory, &error))?;
            Ok(files
                .into_iter()
                .map(|(name, path)| PolicyText { name, text: read(&path), path })
                .collect())
        });
        Contents { mesh: read(&self.mesh), policies }
    }

    fn contain(&self, path: &Path) -> bool {
        let is_policy = || {
            self.policies.as_deref().is_some_and(|directory| {
                path.parent().is_some_and(|parent| same_path(parent, directory))
                    && path.file_name().is_some_and(is_policy_name)
            })
        };
        same_path(path, &self.mesh) || is_policy()
    }

    /// Those of the files, and the one that holds the directory of policies.
    fn directories(&self) -> Vec<PathBuf> {
        let parent = |path: &Path| {
            // "policies/" and "policies" have the same parent.
            path.components().as_path().parent().map(Path::to_owned)
        };
        let mut directories: Vec<PathBuf> = parent(&self.mesh).into_iter().collect();
        if let Some(policies) = &self.policies {
            directories.push(policies.clone());
            directories.extend(parent(policies));
        }
        directories.sort();
        directories.dedup();
        directories
    }
}

/// Returns the policy files of a directory, by name. Hidden files (drafts of editors, Kubernetes' own links) and those
/// with other extensions are not policies.
fn policy_files(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name();
        if is_policy_name(&name) {
            files.push((name.to_string_lossy().into_owned(), directory.join(&name)));
        }
    }
    files.sort();
    Ok(files)
}

fn is_policy_name(name: &OsStr) -> bool {
    let extension = Path::new(name).extension().and_then(OsStr::to_str);
    matches!(extension, Some("yaml" | "yml" | "json")) && !name.as_encoded_bytes().starts_with(b".")
}

fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> FileError {
    FileError::Unreadable { file: path.to_owned(), reason: error.to_string() }
}

fn same_path(a: &Path, b: &Path) -> bool {
    a.components().eq(b.components())
}

/// Returns whether a text has nothing but white space, comments and document markers.
pub(crate) fn is_blank(text: &str) -> bool {
    let is_nothing =
        |line: &str| matches!(line.trim(), "" | "---" | "...") || line.trim().starts_with('#');
    text.lines().all(is_nothing)
}
