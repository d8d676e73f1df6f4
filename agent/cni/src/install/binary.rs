//! The plugin's binary among those of other plugins.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    InstallError,
    draft::{self, Ownership, failed},
};
use crate::PLUGIN;

/// The file beside the binary that says that Sluice was uninstalled.
const RETIRED: &str = "sluice-cni.retired";

/// The binary's place on the node.
pub(super) struct Binary {
    directory: PathBuf,
}

// === impl Binary ===

impl Binary {
    pub(super) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// Copies the plugin here. A running one keeps the file that it was started from.
    pub(super) fn put_in_place(&self, source: &Path) -> Result<(), InstallError> {
        let target = self.directory.join(PLUGIN);
        let bytes = fs::read(source).map_err(failed("read", source))?;
        draft::remove_stale(&self.directory)?;
        fs::create_dir_all(&self.directory).map_err(failed("create", &self.directory))?;
        if !fs::read(&target).is_ok_and(|present| present == bytes) {
            draft::replace(&self.directory, &target, &bytes, Ownership::mode(0o755))?;
        }
        draft::remove(&self.directory.join(RETIRED))
    }

    /// Returns whether the binary is there and not retired.
    pub(super) fn is_in_place(&self) -> bool {
        self.directory.join(PLUGIN).exists() && !self.directory.join(RETIRED).exists()
    }

    /// Leaves the binary in place for runtimes that remember it, but has it do nothing from now on.
    pub(super) fn retire(&self) -> Result<(), InstallError> {
        draft::remove_stale(&self.directory)?;
        if !self.directory.join(PLUGIN).exists() {
            return Ok(());
        }
        let note = b"Sluice was uninstalled, or its plugin was switched off. The plugin beside this file lets every \
                     call succeed, so that pods from before can end. Remove both once the node has been drained.\n";
        let target = self.directory.join(RETIRED);
        if fs::read(&target).is_ok_and(|present| present == note) {
            return Ok(());
        }
        draft::replace(&self.directory, &target, note, Ownership::mode(0o644))
    }
}

/// Returns whether the running plugin has been uninstalled.
pub fn is_retired() -> bool {
    let here = std::env::current_exe().ok();
    here.and_then(|path| path.parent().map(|directory| directory.join(RETIRED).exists()))
        .unwrap_or(false)
}
