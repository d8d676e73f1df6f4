//! Where things are: the repository, what cargo builds, and what is kept between clones.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

/// Cargo's profile for the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Profile {
    /// Optimized: what the demo and the tests run.
    Release,
    /// What is shipped and measured: whole-program optimization, slow to build.
    Dist,
    /// Quick to build, for `cargo check`-like work.
    Dev,
}

impl Profile {
    /// Returns the name that cargo's `--profile` takes.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
            Self::Dev => "dev",
        }
    }

    /// Returns the profile's directory below the target directory; only that of `dev` differs from the profile's name.
    pub(crate) const fn directory(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
            Self::Dev => "debug",
        }
    }
}

/// Returns the root of the clone that cargo was called in. Clones may share one target directory, so this program may
/// have been compiled in another clone.
pub(crate) fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    xtask.parent().map_or(xtask.clone(), Path::to_owned)
}

/// Returns cargo's target directory, which a developer may have moved.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| root().join("target"), |moved| root().join(moved))
}

/// Returns the path of a binary that `build` made.
pub(crate) fn binary(name: &str, profile: Profile) -> PathBuf {
    target_dir().join(host()).join(profile.directory()).join(name)
}

/// Returns the target that `.cargo/config.toml` names. Because it is named, cargo builds in a directory of that name.
pub(crate) fn host() -> String {
    let libc = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("{}-unknown-linux-{libc}", env::consts::ARCH)
}

/// Returns the path of the BPF bytecode. It is not under [`target_dir`]: the kernel crate's build script looks here
/// whatever cargo is told.
pub(crate) fn bpf_object() -> PathBuf {
    root().join("target/bpf/sluice-ebpf")
}

/// Returns the directory of tools that xtask built or fetched, shared by all clones of the user.
pub(crate) fn tools_cache() -> Result<PathBuf> {
    let cache = match env::var_os("XDG_CACHE_HOME").filter(|value| !value.is_empty()) {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(
            env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set: set one")?,
        )
        .join(".cache"),
    };
    Ok(cache.join("sluice/tools"))
}
