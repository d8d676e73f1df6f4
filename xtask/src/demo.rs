//! `cargo xtask demo`: the whole story on one machine, told by `sluice-lab`.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    build, process, tools,
    workspace::{self, Profile},
};

/// Two nodes, four pods and real programs on this machine: unmodified traffic becomes mutual TLS, live.
#[derive(Args)]
pub(crate) struct Options {
    /// Handed to the demo as they are; `-- --help` lists them.
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if !process::is_root() {
        bail!(
            "the demo makes network namespaces and loads kernel programs, which needs root: \
             run `sudo -E env PATH=\"$PATH\" cargo xtask demo`"
        );
    }
    tools::ensure(&tools::LAB)?;
    build::all(Profile::Release)?;
    let mut lab = process::command(workspace::binary("sluice-lab", Profile::Release));
    // In our place, so that Ctrl-C reaches the demo alone and it clears up before the prompt is back.
    Err(process::become_program(lab.arg("demo").args(&options.arguments)))
}
