//! What the file system says about a file, without opening it.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

/// Identity, size and times of a file, after following links, or why they are not known: equal as long as the file was
/// neither written nor replaced. Kubernetes changes mounted volumes by swapping a link two directories up, which a stamp
/// of the path shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp(Result<[i128; 5], io::ErrorKind>);

impl Stamp {
    /// Asks the file system.
    pub fn of(path: &Path) -> Self {
        Self(look(path))
    }
}

fn look(path: &Path) -> Result<[i128; 5], io::ErrorKind> {
    let file = fs::metadata(path).map_err(|error| error.kind())?;
    let nanoseconds =
        |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
    Ok([
        file.dev().into(),
        file.ino().into(),
        file.size().into(),
        nanoseconds(file.mtime(), file.mtime_nsec()),
        nanoseconds(file.ctime(), file.ctime_nsec()),
    ])
}
