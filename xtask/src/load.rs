//! `cargo xtask load`: loads the kernel programs on this machine and shows what the kernel says about each.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build, process,
    workspace::{self, Profile},
};

/// The name of the pin directory, different from any agent's.
const INSTANCE: &str = "xtask";

/// Load and attach the kernel programs on this machine and show what the verifier and the kernel say.
#[derive(Args)]
pub(crate) struct Options {
    /// Load into the kernel for its verdict only: attach nothing, pin nothing.
    #[arg(long, conflicts_with = "unload")]
    dry_run: bool,
    /// Take away what an earlier `load` left attached.
    #[arg(long)]
    unload: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if !process::is_root() {
        bail!(
            "loading kernel programs needs root: run `sudo -E env PATH=\"$PATH\" cargo xtask load`"
        );
    }
    build::all(Profile::Release)?;
    let mut sluice = process::command(workspace::binary("sluice", Profile::Release));
    sluice.arg("datapath");
    if options.dry_run {
        sluice.arg("verify");
    } else {
        sluice.args([if options.unload { "unload" } else { "load" }, "--instance", INSTANCE]);
    }
    process::exec(&mut sluice)
}
