//! Replaces files at once or not at all.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::Path,
};

use super::InstallError;

const PREFIX: &str = ".sluice-cni.";
/// A suffix that no runtime reads.
const SUFFIX: &str = ".draft";

/// The owner and mode of a new file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ownership {
    mode: u32,
    owner: Option<(u32, u32)>,
}

// === impl Ownership ===

impl Ownership {
    pub(super) fn mode(mode: u32) -> Self {
        Self { mode, owner: None }
    }

    /// Returns the ownership of an existing file.
    pub(super) fn of(path: &Path) -> Result<Self, InstallError> {
        let found = fs::metadata(path).map_err(failed("read", path))?;
        Ok(Self { mode: found.mode() & 0o7777, owner: Some((found.uid(), found.gid())) })
    }
}

/// Replaces `target` by `bytes`. Everybody sees the old file or the new one, also after a crash. The draft lies in
/// `directory`, which must be on the same file system.
pub(super) fn replace(
    directory: &Path,
    target: &Path,
    bytes: &[u8],
    ownership: Ownership,
) -> Result<(), InstallError> {
    let draft = directory.join(format!("{PREFIX}{}{SUFFIX}", std::process::id()));
    let written = write(&draft, bytes, ownership)
        .map_err(failed("write", &draft))
        .and_then(|()| fs::rename(&draft, target).map_err(failed("replace", target)));
    if written.is_err() {
        // Only the first error is reported.
        drop(fs::remove_file(&draft));
    }
    written?;
    sync(directory)?;
    target.parent().filter(|parent| *parent != directory).map_or(Ok(()), sync)
}

fn write(draft: &Path, bytes: &[u8], ownership: Ownership) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(draft)?;
    file.write_all(bytes)?;
    if let Some((user, group)) = ownership.owner {
        fchown(&file, Some(user), Some(group))?;
    }
    file.set_permissions(Permissions::from_mode(ownership.mode))?;
    file.sync_all()
}

/// Renames a file and syncs the directory of its new name.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), InstallError> {
    fs::rename(from, to).map_err(failed("rename", from))?;
    to.parent().map_or(Ok(()), sync)
}

/// Removes a file that may have gone already.
pub(super) fn remove(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

fn sync(directory: &Path) -> Result<(), InstallError> {
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(failed("write the directory", directory))
}

/// Removes the drafts of installers that were killed.
pub(super) fn remove_stale(directory: &Path) -> Result<(), InstallError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", directory)(error)),
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX));
        if pid.is_some_and(|pid| pid != std::process::id().to_string()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

pub(super) fn failed(
    action: &'static str,
    path: &Path,
) -> impl Fn(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |source| InstallError::File { action, path: path.clone(), source }
}
