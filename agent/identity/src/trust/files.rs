//! The files themselves: which there are, whether they changed, what they hold.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use sluice_files::{Followed, Stamp};

use super::TrustFiles;

/// A file's bytes, or why there are none.
pub(super) type Content = Result<Vec<u8>, io::Error>;

/// The longest file that is read into memory; nobody's roots or revocation lists are longer.
const MAX_LENGTH: u64 = 64 << 20;

impl TrustFiles {
    /// The files of all kinds, directories of revocation lists resolved. A directory that cannot be read
    /// stands for itself, and for whatever it held when it could.
    fn paths(&self) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = self.others().cloned().collect();
        for path in &self.crls {
            match fs::read_dir(path).and_then(listed) {
                Ok(files) => paths.extend(files),
                Err(_) => paths.push(path.clone()),
            }
        }
        paths
    }

    /// Whether `path`, one of [`Self::paths`], is looked at for revocation lists.
    pub(super) fn is_crl(&self, path: &Path) -> bool {
        self.crls.iter().any(|named| named == path || Some(named.as_path()) == path.parent())
    }

    /// The files that hold no revocation lists.
    fn others(&self) -> impl Iterator<Item = &PathBuf> {
        let federated = self.federated.iter().map(|(_, path)| path);
        self.roots.iter().chain(federated).chain(&self.denied)
    }
}

impl Followed for TrustFiles {
    type Seen = BTreeMap<PathBuf, Stamp>;
    type Contents = Vec<(PathBuf, Content)>;

    fn look(&self) -> Self::Seen {
        self.paths().into_iter().map(|path| (path.clone(), Stamp::of(&path))).collect()
    }

    fn read(&self, seen: &Self::Seen) -> Self::Contents {
        seen.keys().map(|path| (path.clone(), read(path))).collect()
    }

    fn contain(&self, path: &Path) -> bool {
        self.paths().iter().any(|ours| ours == path)
    }

    fn directories(&self) -> Vec<PathBuf> {
        let all = self.others().chain(&self.crls);
        let parents = all.filter_map(|path| path.components().as_path().parent());
        let mut directories: Vec<PathBuf> = parents.map(Path::to_owned).collect();
        directories.extend(self.crls.iter().filter(|path| path.is_dir()).cloned());
        directories.sort();
        directories.dedup();
        directories
    }
}

/// Files of a directory. Hidden ones are drafts of editors and Kubernetes' own links.
fn listed(entries: fs::ReadDir) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        let is_visible = !entry.file_name().as_encoded_bytes().starts_with(b".");
        // Follows links, as those of a ConfigMap are. A link that leads nowhere is a file that cannot be
        // read, not one that was removed.
        if is_visible && fs::metadata(&path).map_or(true, |found| found.is_file()) {
            files.push(path);
        }
    }
    Ok(files)
}

fn read(path: &Path) -> Content {
    if fs::metadata(path)?.size() > MAX_LENGTH {
        return Err(io::Error::other("larger than 64 MiB"));
    }
    fs::read(path)
}
