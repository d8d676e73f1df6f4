//! Debian's packages: looked up, installed when we may, otherwise named in the error.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// Returns whether this machine installs its programs with apt.
pub(crate) fn present() -> bool {
    process::find("apt-get").is_some()
}

/// Returns the version that apt would install, if it knows of any. Fetches the package lists when there are none.
pub(crate) fn candidate(package: &str) -> Option<String> {
    if !present() {
        return None;
    }
    let ask = || {
        let policy =
            process::output(process::command("apt-cache").args(["policy", package])).ok()?;
        let version =
            policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
        (version != "(none)").then(|| version.to_owned())
    };
    ask().or_else(|| fetch_lists_if_there_are_none().then(ask).flatten())
}

/// Returns apt's packages whose names match a regular expression. Fetches the package lists when there are none.
pub(crate) fn matching(names: &str) -> Result<Vec<String>> {
    let ask = || {
        process::output(process::command("apt-cache").args(["search", "--names-only", names]))
            .map(|found| first_words(&found))
    };
    let found = ask()?;
    if found.is_empty() && fetch_lists_if_there_are_none() { ask() } else { Ok(found) }
}

/// Returns whether dpkg has the package unpacked and configured.
pub(crate) fn is_installed(package: &str) -> bool {
    process::output(process::command("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Installs packages after one line that says what and why.
pub(crate) fn install(packages: &[&str], why: &str) -> Result<()> {
    let list = packages.join(" ");
    if !present() {
        bail!("{why}: install what Debian calls {list} (this machine has no apt-get)");
    }
    if !process::is_root() {
        bail!(
            "{why}: run `sudo apt-get install --no-install-recommends {list}`, or run this command as root"
        );
    }
    eprintln!("xtask: installing {list} ({why})");
    // The first try fails if the package lists are missing or older than the archive.
    try_install(packages).or_else(|_first| {
        update()?;
        try_install(packages).with_context(|| why.to_owned())
    })
}

/// Fetches a package and unpacks it into a directory, which is made. Nothing is installed, so no service starts.
pub(crate) fn unpack(package: &str, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    let download = || {
        let mut apt = process::command("apt-get");
        process::output(apt.args(["download", "-qq", package]).current_dir(into))
    };
    // As in `install`, the package lists may be older than the archive.
    download().or_else(|_first| update().and_then(|()| download()))?;
    let fetched = fetched_package(into)?;
    process::output(process::command("dpkg-deb").arg("-x").arg(&fetched).arg(into))?;
    fs::remove_file(&fetched).with_context(|| format!("cannot remove {}", fetched.display()))
}

fn fetched_package(directory: &Path) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get download left no package in {}", directory.display()))
}

fn first_words(lines: &str) -> Vec<String> {
    lines.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn try_install(packages: &[&str]) -> Result<()> {
    let mut command = process::command("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
        .args(["install", "-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"])
        .args(packages);
    process::output(&mut command).map(drop)
}

/// Fetches the package lists anew, if we are root. Failures are only printed: whoever misses a package says so.
pub(crate) fn refresh() {
    if process::is_root()
        && let Err(error) = update()
    {
        eprintln!("xtask: the package lists stay as they are: {error:#}");
    }
}

fn update() -> Result<()> {
    process::output(process::command("apt-get").args(["update", "-qq"])).map(drop)
}

/// Fetches the package lists if there are none: apt knows no package then, as in a fresh container. Returns whether it
/// fetched them.
fn fetch_lists_if_there_are_none() -> bool {
    present() && !lists_are_there() && process::is_root() && update().is_ok()
}

fn lists_are_there() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}
