//! Writes a file whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Replaces a file, or makes it, with these permissions (less the umask). A reader finds the old contents or the new
/// ones, also after a crash in between. Its directory must exist.
pub fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    // Hidden, and unique to this process: an agent that is about to be replaced may be writing the same file.
    let draft = directory.join(format!(".{}.{}.new", name.display(), std::process::id()));
    let replaced = write(&draft, contents, mode).and_then(|()| fs::rename(&draft, path));
    if replaced.is_err() {
        // What is wrong with the draft has been said already.
        drop(fs::remove_file(&draft));
    }
    replaced?;
    File::open(directory)?.sync_all()
}

fn write(draft: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    match fs::remove_file(draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(draft)?;
    file.write_all(contents)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_made_and_replaced_with_its_permissions_and_nothing_is_left_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        for (contents, mode) in [("first", 0o644), ("second", 0o600)] {
            replace(&path, contents.as_bytes(), mode).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), contents);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_replaced_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::create_dir(&path).unwrap();
        replace(&path, b"contents", 0o600).unwrap_err();
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "the draft is left");
        replace(&directory.path().join("none/key"), b"contents", 0o600).unwrap_err();
    }
}
