//! Debian's packages: asked about, installed when we may, otherwise named in the error.

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
    ask().or_else(|| {
        // A fresh container has no lists at all, and then apt knows of no package.
        if lists_are_there() || !process::is_root() {
            return None;
        }
        update().ok()?;
        ask()
    })
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

fn try_install(packages: &[&str]) -> Result<()> {
    let mut command = process::command("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
        .args(["install", "-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"])
        .args(packages);
    process::output(&mut command).map(drop)
}

fn update() -> Result<()> {
    process::output(process::command("apt-get").args(["update", "-qq"])).map(drop)
}

fn lists_are_there() -> bool {
    std::fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
    })
}
