//! Debian's kernels: found by their series, fetched and unpacked into the tools' cache, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::Kernel;
use crate::{apt, process, tools, workspace};

/// The start of a kernel package's name; the kernel's release follows.
const PACKAGE: &str = "linux-image-";
/// The directories of modules that tests use: a quarter of a kernel's 400 MB.
const KEPT: [&str; 7] = ["arch", "crypto", "drivers/net", "drivers/virtio", "fs", "lib", "net"];

/// Returns the newest kernel of a series, such as `6.1`; fetches it if it is not in the cache.
pub(super) fn kernel(series: &str) -> Result<Kernel> {
    ensure!(
        !series.is_empty() && series.split('.').all(|part| part.parse::<u32>().is_ok()),
        "{series} is neither a kernel's series, such as 6.1, nor a path to one (with a slash)"
    );
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "Debian's kernels are fetched for x86_64 only so far: name one by its path"
    );
    ensure!(apt::present(), "no apt-get to fetch Linux {series} with: name a kernel by its path");
    let mut release = newest(series)?;
    if !is_cached(release.as_deref())? {
        // Package lists older than the archive name kernels that it no longer has.
        apt::refresh();
        release = newest(series)?;
    }
    let release = release.with_context(|| {
        format!("apt knows of no Linux {series}: add a distribution that has it, or name a kernel by its path")
    })?;
    let root = place(&release)?;
    if !root.exists() {
        fetch(&release, &root)?;
    }
    Ok(Kernel { image: root.join(format!("boot/vmlinuz-{release}")), modules: Some(root), release })
}

/// Returns the newest release of the series that apt knows, as `uname -r` will name it.
fn newest(series: &str) -> Result<Option<String>> {
    let names = format!(r"^{PACKAGE}{}\.[0-9].*-amd64$", series.replace('.', r"\."));
    let found = apt::matching(&names)?.into_iter();
    let newest = found.filter(|name| is_plain(name, series)).max_by_key(|name| version(name));
    Ok(newest.and_then(|name| name.strip_prefix(PACKAGE).map(str::to_owned)))
}

fn is_cached(release: Option<&str>) -> Result<bool> {
    release.map_or(Ok(false), |release| Ok(place(release)?.exists()))
}

fn place(release: &str) -> Result<PathBuf> {
    Ok(workspace::tools_cache()?.join(format!("kernel-{release}")))
}

/// Returns whether the package is the ordinary, signed kernel of exactly that series (`6.1` is not `6.12`).
fn is_plain(package: &str, series: &str) -> bool {
    let Some(rest) = package.strip_prefix(&format!("{PACKAGE}{series}.")) else { return false };
    !["-cloud-", "-rt-", "-unsigned", "-dbg"].iter().any(|variant| rest.contains(variant))
}

/// Returns the numbers in a package's name, by which kernels are ordered.
fn version(package: &str) -> Vec<u64> {
    package
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn fetch(release: &str, root: &Path) -> Result<()> {
    tools::ensure(&tools::KERNEL)?;
    eprintln!("xtask: fetching Linux {release} into {} (not installed)", root.display());
    let part = root.with_extension("part");
    if part.exists() {
        fs::remove_dir_all(&part).with_context(|| format!("cannot clear {}", part.display()))?;
    }
    apt::unpack(&format!("{PACKAGE}{release}"), &part)?;
    keep_only(&part.join("lib/modules").join(release).join("kernel"))?;
    process::output(process::command("depmod").arg("-b").arg(&part).arg(release))?;
    // Renamed last: if this process is killed, no incomplete kernel is left in the cache.
    fs::rename(&part, root).with_context(|| format!("cannot move {} into place", root.display()))
}

/// Removes the directories of modules that tests do not use. In `drivers/net` all of them go: they are for hardware.
fn keep_only(modules: &Path) -> Result<()> {
    let kept: Vec<PathBuf> = KEPT.iter().map(|name| modules.join(name)).collect();
    let drivers = modules.join("drivers");
    for directory in [modules, drivers.as_path(), &drivers.join("net")] {
        for entry in fs::read_dir(directory)
            .with_context(|| format!("the package has no {}", directory.display()))?
            .flatten()
        {
            let path = entry.path();
            if path.is_dir() && path != drivers && !kept.contains(&path) {
                fs::remove_dir_all(&path)
                    .with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
    }
    if !modules.join("net").is_dir() {
        bail!("no network modules are left in {}", modules.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_ordinary_kernel_of_the_series_is_taken() {
        let names = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-57-cloud-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.12.117+deb12-amd64",
        ];
        let newest = |series: &str| {
            names.into_iter().filter(|name| is_plain(name, series)).max_by_key(|name| version(name))
        };
        assert_eq!(newest("6.1"), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest("6.12"), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(newest("5.15"), None);
    }

    #[test]
    fn what_is_no_series_is_refused() {
        for wrong in ["", "six", "6.", "6.1-rc1", "v6.1"] {
            assert!(kernel(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn modules_for_hardware_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        for directory in ["net/sched", "drivers/net/wireless", "drivers/gpu", "sound", "fs/9p"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        fs::write(root.path().join("drivers/net/veth.ko"), b"").unwrap();
        keep_only(root.path()).unwrap();
        let left = |path: &str| root.path().join(path).exists();
        assert!(left("net/sched") && left("fs/9p") && left("drivers/net/veth.ko"));
        assert!(!left("drivers/net/wireless") && !left("drivers/gpu") && !left("sound"));
    }
}
