//! Tells whether files were replaced, by checking them from time to time. Kubernetes changes mounted Secrets and other
//! volumes by swapping a link two directories up, which a check through the path always sees.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How often files are checked.
pub(crate) const POLL: Duration = Duration::from_secs(1);

/// What the file system says about some files; equal as long as none was replaced or written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp(Vec<Result<[i128; 5], io::ErrorKind>>);

impl Stamp {
    pub(crate) fn of(paths: &[PathBuf]) -> Self {
        Self(paths.iter().map(|path| look(path)).collect())
    }
}

fn look(path: &Path) -> Result<[i128; 5], io::ErrorKind> {
    let file = fs::metadata(path).map_err(|error| error.kind())?;
    let changed = i128::from(file.ctime()) * 1_000_000_000 + i128::from(file.ctime_nsec());
    let written = i128::from(file.mtime()) * 1_000_000_000 + i128::from(file.mtime_nsec());
    Ok([file.dev().into(), file.ino().into(), file.size().into(), written, changed])
}
