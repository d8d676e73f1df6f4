//! `cargo xtask build`: the BPF bytecode, then the agent with the bytecode inside.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    bpf_toolchain, process, tools,
    workspace::{self, Profile},
};

/// The programs of this tree that the demo, the tests and the images use.
const PROGRAMS: [&str; 3] = ["sluice", "sluice-cni", "sluice-lab"];

/// Build the BPF bytecode and the binaries that embed it.
#[derive(Args)]
pub(crate) struct Options {
    /// How the agent is compiled; the bytecode is always optimized.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
    /// Stop after the bytecode: enough for `cargo clippy` and `cargo check`.
    #[arg(long)]
    bpf_only: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    bytecode()?;
    if options.bpf_only { Ok(()) } else { binaries(options.profile) }
}

/// Builds everything that a demo or a test starts.
pub(crate) fn all(profile: Profile) -> Result<()> {
    bytecode()?;
    binaries(profile)
}

fn bytecode() -> Result<()> {
    let toolchain = bpf_toolchain::find_or_install()?;
    // A directory of its own: the compiler and its flags differ, and no lock is shared with an editor.
    let target_dir = workspace::root().join("target/bpf-build");
    let mut cargo = toolchain.cargo("build");
    cargo.current_dir(workspace::root());
    cargo
        .args([
            "--quiet",
            "--release",
            "--package",
            "sluice-ebpf",
            "--bin",
            "sluice-ebpf",
            "--target-dir",
        ])
        .arg(&target_dir);
    process::exec(&mut cargo)
        .with_context(|| format!("the bytecode did not build with {}", toolchain.name()))?;
    let built = target_dir.join(bpf_toolchain::TARGET).join("release/sluice-ebpf");
    copy_if_different(&built, &workspace::bpf_object())
}

fn binaries(profile: Profile) -> Result<()> {
    tools::ensure(&tools::BUILD)?;
    let mut cargo = process::cargo();
    cargo.current_dir(workspace::root());
    cargo.args([
        "build",
        "--profile",
        profile.name(),
        "--package",
        "sluice-agent",
        "--package",
        "sluice-cni",
        "--package",
        "sluice-tests",
        "--bins",
    ]);
    process::exec(&mut cargo)?;
    PROGRAMS.iter().try_for_each(|program| show(program, profile))
}

/// Links a program to where people look for it: in cargo's directory for builds that name no target.
fn show(program: &str, profile: Profile) -> Result<()> {
    let place = workspace::target_dir().join(profile.directory()).join(program);
    let built = Path::new("..").join(workspace::host()).join(profile.directory()).join(program);
    if fs::read_link(&place).is_ok_and(|shown| shown == built) {
        return Ok(());
    }
    if fs::symlink_metadata(&place).is_ok() {
        fs::remove_file(&place).with_context(|| format!("cannot replace {}", place.display()))?;
    }
    if let Some(directory) = place.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    symlink(&built, &place).with_context(|| format!("cannot make {}", place.display()))
}

/// Copies the bytecode only if it has changed: a new time stamp makes cargo rebuild the agent.
fn copy_if_different(built: &Path, kept: &Path) -> Result<()> {
    let new =
        fs::read(built).with_context(|| format!("cannot read the bytecode {}", built.display()))?;
    if fs::read(kept).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(directory) = kept.parent() {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    fs::write(kept, &new)
        .with_context(|| format!("cannot write the bytecode {}", kept.display()))?;
    println!("bytecode: {} ({} bytes)", kept.display(), new.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unchanged_bytecode_keeps_its_time_stamp() {
        let directory = tempfile::tempdir().unwrap();
        let (built, kept) = (directory.path().join("built"), directory.path().join("deep/kept"));
        fs::write(&built, b"one").unwrap();
        copy_if_different(&built, &kept).unwrap();
        let first = fs::metadata(&kept).unwrap().modified().unwrap();
        copy_if_different(&built, &kept).unwrap();
        assert_eq!(fs::metadata(&kept).unwrap().modified().unwrap(), first);
        fs::write(&built, b"two").unwrap();
        copy_if_different(&built, &kept).unwrap();
        assert_eq!(fs::read(&kept).unwrap(), b"two");
    }
}
