//! `cargo xtask demo`: the whole story on one machine, told by `sluice-lab`.

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build, cluster, process, tools,
    workspace::{self, Profile},
};

/// Two nodes, four pods and real programs on this machine: unmodified traffic becomes mutual TLS, live.
#[derive(Args)]
pub(crate) struct Options {
    /// Run it on a real two-node Kubernetes, with kubectl and helm alone (needs Go; the first run takes ten minutes).
    #[arg(long)]
    cluster: bool,
    /// Arguments that are passed to the demo unchanged; `-- --help` lists them.
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
    lab.env("SLUICE_BIN", workspace::binary("sluice", Profile::Release));
    if options.cluster {
        // Whatever has to be built is built before the curtain rises.
        cluster::prepare()?;
        let ourselves = std::env::current_exe().context("where this program is")?;
        lab.arg("cluster-demo").arg("--xtask").arg(ourselves);
    } else {
        lab.arg("demo");
    }
    // Replaces this process: Ctrl-C then reaches the demo alone, which cleans up before the prompt returns.
    Err(process::become_program(lab.args(&options.arguments)))
}
