//! A real inotify, real files, and writers that take their time.

use std::{fs, io::Write};

use super::*;
use crate::{Stamp, replace};

/// One file, and what it holds.
struct One(PathBuf);

impl Followed for One {
    type Seen = Stamp;
    type Contents = String;

    fn directories(&self) -> Vec<PathBuf> {
        // The directory of the file, and the one in which that may be replaced.
        self.0.ancestors().skip(1).take(2).map(Path::to_owned).collect()
    }

    fn contain(&self, path: &Path) -> bool {
        path == self.0
    }

    fn look(&self) -> Stamp {
        Stamp::of(&self.0)
    }

    fn read(&self, _: &Stamp) -> String {
        fs::read_to_string(&self.0).unwrap_or_default()
    }
}

/// A directory in a directory, with a file.
fn place() -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let inner = outer.path().join("inner");
    fs::create_dir(&inner).unwrap();
    (outer, inner.join("file"))
}

fn follow(path: &Path) -> Follower<One, u8> {
    let mut follower = Follower::new(One(path.to_owned()));
    assert_eq!(follower.begin(), fs::read_to_string(path).unwrap_or_default());
    follower
}

/// Returns what the file holds after its next change, and how long that took.
fn change(follower: &mut Follower<One, u8>) -> (String, Duration) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        match follower.wait() {
            News::Changed(contents) => return (contents, began.elapsed()),
            News::Unchanged => {}
            other @ (News::Message(_) | News::Closed) => panic!("{other:?}"),
        }
    }
    panic!("no change was seen");
}

#[test]
fn a_file_that_is_made_written_replaced_and_removed_is_seen_each_time() {
    let (_outer, path) = place();
    let mut follower = follow(&path);
    fs::write(&path, "made").unwrap();
    assert_eq!(change(&mut follower).0, "made");
    fs::write(&path, "written").unwrap();
    assert_eq!(change(&mut follower).0, "written");
    replace(&path, b"replaced", 0o600).unwrap();
    assert_eq!(change(&mut follower).0, "replaced");
    fs::remove_file(&path).unwrap();
    assert_eq!(change(&mut follower).0, "");
}

#[test]
fn a_directory_that_is_replaced_is_followed() {
    let (outer, path) = place();
    let mut follower = follow(&path);
    let inner = path.parent().unwrap();
    fs::rename(inner, outer.path().join("old")).unwrap();
    fs::create_dir(inner).unwrap();
    fs::write(&path, "new").unwrap();
    assert_eq!(change(&mut follower).0, "new");
    fs::write(&path, "newer").unwrap();
    assert_eq!(change(&mut follower).0, "newer");
}

#[test]
fn half_a_file_is_not_read_while_its_writer_goes_on() {
    let (_outer, path) = place();
    let mut follower = follow(&path);
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"one half, ").unwrap();
    let writer = thread::spawn(move || {
        thread::sleep(3 * MAX_UNREST);
        file.write_all(b"and the other").unwrap();
    });
    assert_eq!(change(&mut follower).0, "one half, and the other");
    writer.join().unwrap();
}

#[test]
fn a_writer_that_never_finishes_is_not_waited_for_forever() {
    let (_outer, path) = place();
    let mut follower = follow(&path);
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    let (contents, took) = change(&mut follower);
    assert_eq!(contents, "half");
    assert!(took >= MAX_UNFINISHED, "{took:?}");
    drop(file);
}

#[test]
fn messages_come_at_once_and_the_last_one_says_so() {
    let (_outer, path) = place();
    let mut follower = follow(&path);
    // Somebody writes meanwhile.
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"half").unwrap();
    let messages = follower.messages();
    messages.send(7);
    assert!(matches!(follower.wait(), News::Message(7)));
    drop(messages);
    assert!(matches!(follower.wait(), News::Closed));
    file.write_all(b" and half").unwrap();
    drop(file);
    assert_eq!(change(&mut follower).0, "half and half");
}
