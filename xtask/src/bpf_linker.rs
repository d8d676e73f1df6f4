//! bpf-linker for a given LLVM: found, or built once per user from crates.io.
//!
//! The linker reads bitcode, so its LLVM must be the compiler's. A linker that is built here goes to the tools' cache,
//! not among the user's own programs, under a name that holds both versions.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{apt, process, workspace};

/// The version that the bytecode is developed with.
const VERSION: &str = "0.13.0";
/// What the version of a usable linker starts with, whoever built it.
const SERIES: &str = "bpf-linker 0.13.";
/// The LLVM versions that this release has a feature for.
const LLVM: std::ops::RangeInclusive<u32> = 21..=23;
/// The variable that names a linker to be used unchecked, for one with LLVM linked statically.
const OVERRIDE: &str = "SLUICE_BPF_LINKER";

/// Returns the linker for this LLVM, if there is one.
pub(crate) fn find(llvm: u32) -> Option<PathBuf> {
    if let Some(chosen) = env::var_os(OVERRIDE) {
        return Some(PathBuf::from(chosen));
    }
    let cached = cache(llvm).ok().map(|directory| directory.join("bin/bpf-linker"));
    [cached, process::find("bpf-linker")].into_iter().flatten().find(|linker| fits(linker, llvm))
}

/// Returns whether [`build`] can succeed: the version is known, and LLVM's development files are here or can be had.
pub(crate) fn can_be_built(llvm: u32) -> bool {
    LLVM.contains(&llvm)
        && (prefix(llvm).is_some()
            || (process::is_root() && apt::candidate(&format!("llvm-{llvm}-dev")).is_some()))
}

/// Builds the linker into the tools' cache and returns its path.
pub(crate) fn build(llvm: u32) -> Result<PathBuf> {
    if !LLVM.contains(&llvm) {
        bail!(
            "the BPF compiler uses LLVM {llvm}, bpf-linker {VERSION} knows {} to {}: \
             use another compiler, or name a linker in {OVERRIDE}",
            LLVM.start(),
            LLVM.end()
        );
    }
    install_libraries(llvm)?;
    let prefix = prefix(llvm).with_context(|| {
        format!(
            "bpf-linker needs LLVM {llvm} with its headers, which Debian calls llvm-{llvm}-dev: install it, or name a \
             linker from https://github.com/aya-rs/bpf-linker/releases in {OVERRIDE}"
        )
    })?;
    let directory = cache(llvm)?;
    eprintln!(
        "xtask: building bpf-linker {VERSION} for LLVM {llvm} into {} (once, about a minute)",
        directory.display()
    );
    let mut cargo = process::cargo();
    // The caller's target directory may be on another disk or shared; a tool has no business there.
    cargo.env_remove("CARGO_TARGET_DIR").env("LLVM_PREFIX", prefix);
    // Built outside this tree, whose cargo configuration links statically: LLVM is a shared library.
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    cargo.current_dir(&directory);
    cargo.args([
        "install",
        "bpf-linker",
        "--quiet",
        "--locked",
        "--version",
        VERSION,
        "--no-default-features",
    ]);
    cargo.arg("--features").arg(format!("llvm-{llvm}")).arg("--root").arg(&directory);
    process::output(&mut cargo).with_context(|| {
        format!("bpf-linker did not build; it needs {}", packages(llvm).join(", "))
    })?;
    let linker = directory.join("bin/bpf-linker");
    if !fits(&linker, llvm) {
        bail!("{} was built, yet does not run with LLVM {llvm}: see `ldd {0}`", linker.display());
    }
    Ok(linker)
}

fn cache(llvm: u32) -> Result<PathBuf> {
    Ok(workspace::tools_cache()?.join(format!("bpf-linker-{VERSION}-llvm{llvm}")))
}

/// Returns whether the linker runs, is of our series and is linked with this LLVM.
fn fits(linker: &Path, llvm: u32) -> bool {
    let version = process::output(process::command(linker).arg("--version"));
    if !version.is_ok_and(|version| version.starts_with(SERIES)) {
        return false;
    }
    process::output(process::command("ldd").arg(linker))
        .is_ok_and(|libraries| linked_llvm(&libraries) == Some(llvm))
}

/// Returns LLVM's major version from what `ldd` prints: `libLLVM.so.22.1 => ...`, or the older `libLLVM-17.so.1`.
fn linked_llvm(libraries: &str) -> Option<u32> {
    let name = libraries.lines().find_map(|line| line.trim().strip_prefix("libLLVM"))?;
    let digits = name.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    digits.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// Returns the directory of this LLVM's libraries and headers.
fn prefix(llvm: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    let tools = [
        debian.join("bin/llvm-config"),
        PathBuf::from(format!("llvm-config-{llvm}")),
        PathBuf::from("llvm-config"),
    ];
    tools.iter().find_map(|tool| {
        let version = process::output(process::command(tool).arg("--version")).ok()?;
        if version.split('.').next()?.trim().parse() != Ok(llvm) {
            return None;
        }
        let include = process::output(process::command(tool).arg("--includedir")).ok()?;
        // The runtime package contains the tool as well, but no headers.
        if !Path::new(include.trim()).join("llvm-c/Core.h").exists() {
            return None;
        }
        Some(PathBuf::from(process::output(process::command(tool).arg("--prefix")).ok()?.trim()))
    })
}

/// Returns Debian's names of the libraries that the linker is linked with.
fn packages(llvm: u32) -> Vec<String> {
    let mut packages = vec![format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    packages.extend(["libzstd-dev", "zlib1g-dev", "libxml2-dev", "g++"].map(str::to_owned));
    packages
}

/// Installs the missing packages that apt has; [`build`] explains what to do about the others.
fn install_libraries(llvm: u32) -> Result<()> {
    if !apt::present() {
        return Ok(());
    }
    let packages = packages(llvm);
    let missing = packages.iter().map(String::as_str).filter(|package| !apt::is_installed(package));
    let missing: Vec<&str> = missing.filter(|package| apt::candidate(package).is_some()).collect();
    if missing.is_empty() {
        Ok(())
    } else {
        apt::install(&missing, "bpf-linker is built with them")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linked_llvm_is_read_from_ldd() {
        assert_eq!(
            linked_llvm("\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x0)\n"),
            Some(22)
        );
        assert_eq!(linked_llvm("\tlibLLVM-17.so.1 => /usr/lib/libLLVM-17.so.1 (0x0)\n"), Some(17));
        assert_eq!(linked_llvm("\tlibc.so.6 => /lib/libc.so.6 (0x0)\n"), None);
    }
}
