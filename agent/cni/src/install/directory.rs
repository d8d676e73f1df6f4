//! The directory of network lists, read as runtimes read it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    InstallError, Installed,
    draft::{self, Ownership, failed},
    dropin,
    list::{self, List},
};
use crate::plugin::SUPPORTED;

/// The plugin that every node has for `lo`; it makes no pod network.
const LOOPBACK: &str = "loopback";

/// The directory of network lists, usually `/etc/cni/net.d`.
pub(super) struct Directory {
    path: PathBuf,
}

/// The file that tells the runtime how to make a pod's network.
#[derive(Debug)]
pub(super) enum Source {
    /// A list of plugins.
    List(Text),
    /// One plugin.
    Single(Text),
}

/// A file with its text.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

// === impl Source ===

impl Source {
    /// The file that the runtime reads.
    pub(super) fn path(&self) -> &Path {
        let (Self::List(file) | Self::Single(file)) = self;
        &file.path
    }

    /// The `type` of each plugin that it names and that is not ours.
    pub(super) fn others(&self) -> Vec<String> {
        match self {
            Self::List(file) => {
                List::parse(&file.text).map(|list| list.others().collect()).unwrap_or_default()
            }
            Self::Single(file) => {
                list::single(&file.text).map(|(kind, _)| kind).into_iter().collect()
            }
        }
    }
}

// === impl Directory ===

impl Directory {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn remove_stale_drafts(&self) -> Result<(), InstallError> {
        draft::remove_stale(&self.path)
    }

    /// Returns the first file in lexical order that a runtime would take; others are passed over.
    pub(super) fn first_valid(&self) -> Result<Option<Source>, InstallError> {
        Ok(self.files(&["conf", "conflist", "json"])?.into_iter().find_map(valid))
    }

    /// Returns the files with one of these suffixes, in lexical order; none if there is no directory.
    pub(super) fn files(&self, suffixes: &[&str]) -> Result<Vec<PathBuf>, InstallError> {
        let unreadable = failed("read", &self.path);
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(&unreadable)?.path();
            let suffix = path.extension().and_then(|suffix| suffix.to_str());
            if suffix.is_some_and(|suffix| suffixes.contains(&suffix)) && !path.is_dir() {
                found.push(path);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Takes our entry out of every file except `kept`.
    pub(super) fn leave_all_but(&self, kept: Option<&Path>) -> Result<(), InstallError> {
        for path in self.files(&["conflist"])? {
            if Some(path.as_path()) == kept {
                continue;
            }
            // What is not a list, or has gone, has no entry of ours.
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let Ok(list) = List::parse(&text) else { continue };
            let shorter = list.without_entry();
            if shorter != text {
                rewrite(&Text { path, text: text.clone() }, &shorter)?;
            }
        }
        dropin::leave_all_but(self, kept)
    }
}

/// Puts our entry at the end of a list.
pub(super) fn enter_list(file: &Text, entry: &str) -> Result<Installed, InstallError> {
    let unreadable = |error: list::NotAList| InstallError::File {
        action: "understand",
        path: file.path.clone(),
        source: io::Error::other(error.to_string()),
    };
    let list = List::parse(&file.text).map_err(unreadable)?;
    check_version(&file.path, &list.version)?;
    let text = list.with_entry(entry);
    let changed = text != file.text;
    if changed {
        rewrite(file, &text)?;
    }
    let main = list.main_plugin().unwrap_or_default();
    Ok(Installed::InPlace { file: file.path.clone(), changed, main })
}

/// Replaces a file of others by `text`, which differs from it in our entry only. If they have changed the file since it
/// was read, theirs stands: this fails, and the next look starts from what they wrote.
pub(super) fn rewrite(file: &Text, text: &str) -> Result<(), InstallError> {
    let target = fs::canonicalize(&file.path).map_err(failed("read", &file.path))?;
    let ownership = Ownership::of(&target)?;
    let now = fs::read_to_string(&target).map_err(failed("read", &target))?;
    if now != file.text {
        return Err(failed("replace", &target)(io::Error::other(
            "somebody else is changing it at this moment",
        )));
    }
    let parent = target.parent().unwrap_or(Path::new("/"));
    draft::replace(parent, &target, text.as_bytes(), ownership)
}

/// Fails unless the plugin speaks this version: in a list of any other it would fail every pod.
pub(super) fn check_version(path: &Path, version: &str) -> Result<(), InstallError> {
    if SUPPORTED.contains(&version) {
        return Ok(());
    }
    Err(InstallError::Version { path: path.to_owned(), version: version.to_owned() })
}

fn valid(path: PathBuf) -> Option<Source> {
    let text = fs::read_to_string(&path).ok()?;
    if path.extension().is_some_and(|suffix| suffix == "conflist") {
        let main = List::parse(&text).ok()?.main_plugin()?;
        return (main != LOOPBACK).then_some(Source::List(Text { path, text }));
    }
    let (kind, _) = list::single(&text).ok()?;
    (kind != LOOPBACK).then_some(Source::Single(Text { path, text }))
}
