//! Copies of the last good version of every file. With them, an agent that starts beside a bad file still knows what
//! was in force.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// The copies in `<stateDir>/last-good/<instance>`, which keeps agents that share a state directory apart.
#[derive(Clone, Debug)]
pub(crate) struct LastGood {
    /// `None` if no copies are kept.
    directory: Option<PathBuf>,
}

impl LastGood {
    pub(crate) fn new(state_dir: &Path, instance: &str) -> Self {
        Self { directory: Some(state_dir.join("last-good").join(instance)) }
    }

    /// Keeps no copies: a restart begins with what the files say then.
    pub(crate) fn none() -> Self {
        Self { directory: None }
    }

    pub(crate) fn mesh(&self) -> Option<String> {
        fs::read_to_string(self.mesh_path()?).ok()
    }

    pub(crate) fn keep_mesh(&self, text: &str) {
        if let Some(path) = self.mesh_path() {
            report(&path, replace(&path, text));
        }
    }

    /// Returns the texts by file name; `None` if no set of policies was ever kept, which is not the same as an empty
    /// set.
    pub(crate) fn policies(&self) -> Option<BTreeMap<String, String>> {
        let entries = fs::read_dir(self.policies_path()?).ok()?;
        let copies = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            (!name.starts_with('.')).then_some((name, fs::read_to_string(entry.path()).ok()?))
        });
        Some(copies.collect())
    }

    /// Makes these texts the kept copies, and removes all others.
    pub(crate) fn keep_policies<'a>(&self, texts: impl Iterator<Item = (&'a str, &'a str)>) {
        let Some(directory) = self.policies_path() else { return };
        let mut stale = self.policies().unwrap_or_default();
        report(&directory, create(&directory));
        for (name, text) in texts {
            if stale.remove(name).as_deref() != Some(text) {
                let path = directory.join(name);
                report(&path, replace(&path, text));
            }
        }
        for name in stale.into_keys() {
            let path = directory.join(name);
            report(&path, fs::remove_file(&path));
        }
    }

    fn mesh_path(&self) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join("mesh.yaml"))
    }

    fn policies_path(&self) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join("policies"))
    }
}

/// Logs that a copy could not be kept. That is no error: it does not change what is in force now.
fn report(path: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(
            path = %path.display(),
            %error,
            "cannot keep a copy of the last good state; a restart beside a bad file would not know it",
        );
    }
}

fn create(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Replaces a file, in a directory that is made if it is missing.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), create)?;
    sluice_files::replace(path, text.as_bytes(), 0o600)
}
