//! Debian's packages: asked about, installed when we may, otherwise named in the error.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// Whether this machine installs its programs with apt.
pub(crate) fn present() -> bool {
    process::find("apt-get").is_some()
}

/// The version that apt would install, `None` when it knows of none. Fetches the package lists when there are none.
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

/// The packages that apt knows whose names match a regular expression. Fetches the package lists when there are none.
pub(crate) fn matching(names: &str) -> Result<Vec<String>> {
    let ask = || {
        process::output(process::command("apt-cache").args(["search", "--names-only", names]))
            .map(|found| first_words(&found))
    };
    let found = ask()?;
    if found.is_empty() && fetch_lists_if_there_are_none() { ask() } else { Ok(found) }
}

/// Whether dpkg has the package unpacked and configured.
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
    // Lists that are missing or older than the archive make the first try fail.
    try_install(packages).or_else(|_first| {
        update()?;
        try_install(packages).with_context(|| why.to_owned())
    })
}

/// Fetches a package and unpacks it into a directory, which is made: nothing is installed, so no service starts.
pub(crate) fn unpack(package: &str, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("cannot make {}", into.display()))?;
    let download = || {
        let mut apt = process::command("apt-get");
        process::output(apt.args(["download", "-qq", package]).current_dir(into))
    };
    // As in `install`, for lists older than the archive.
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

/// Fetches the package lists anew, if we may; who then misses a package says so.
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

/// A fresh container has no lists at all, and then apt knows of no package. Whether there are lists now that were not
/// there before.
fn fetch_lists_if_there_are_none() -> bool {
    present() && !lists_are_there() && process::is_root() && update().is_ok()
}

fn lists_are_there() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}
