//! `cargo xtask test`: unit, property and namespace tests as one command.

use std::thread;

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build, process, tools,
    workspace::{self, Profile},
};

/// Set up, then run every test: unit, property, and those in network namespaces.
#[derive(Args)]
pub(crate) struct Options {
    /// The long tests at full size: 200,000 connections, 10 GB, 10,000 at once.
    #[arg(long)]
    full: bool,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Handed to the test programs as they are, e.g. `-- --nocapture`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if !process::is_root() {
        bail!(
            "the namespace tests make network namespaces and load kernel programs, which needs root: run \
             `sudo -E env PATH=\"$PATH\" cargo xtask test`. The others alone: \
             `cargo test --release --workspace --exclude sluice-tests` after `cargo xtask build`"
        );
    }
    tools::ensure(&tools::LAB)?;
    build::all(Profile::Release)?;
    let mut cargo = process::cargo();
    cargo.current_dir(workspace::root());
    // To the end even when one fails: the next run should not be needed to hear of the second.
    cargo.args(["test", "--release", "--workspace", "--no-fail-fast"]);
    cargo.args(&options.filter);
    cargo.arg("--").args(&options.arguments);
    cargo.env("RUST_TEST_THREADS", test_threads().to_string());
    cargo.env("SLUICE_BIN", workspace::binary("sluice", Profile::Release));
    if options.full {
        cargo.env("SLUICE_FULL", "1");
    }
    process::exec(&mut cargo)
}

/// A namespace test runs two agents and their clients and asserts times: leave each two processors.
fn test_threads() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, 2)
}
