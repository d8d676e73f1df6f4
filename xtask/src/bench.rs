//! `cargo xtask bench`: what a mesh costs, measured by the harness in `tests/bench`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::{
    build, process, tools,
    workspace::{self, Profile},
};

/// Compare Sluice with no mesh, and with a ztunnel given by path: throughput, latency, connections, CPU, memory.
#[derive(Args)]
pub(crate) struct Options {
    /// How often each cell is measured; the table shows medians.
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// Also measure this ztunnel; it must accept `FAKE_CA` (built with `--features testing`).
    #[arg(long, value_name = "PATH")]
    ztunnel: Option<PathBuf>,
    /// Where client and server are: on two nodes (`cross`), on the same (`same`).
    #[arg(long, default_value = "cross,same")]
    scopes: String,
    /// What to measure.
    #[arg(long, default_value = "mem,cold,rr,http,conn,bulk")]
    tests: String,
    /// What to measure it on, comma-separated; the first is what the others are compared with.
    #[arg(long, value_name = "NAMES", default_value = "direct,sluice")]
    sut: String,
    /// How Sluice is compiled.
    #[arg(long, value_enum, default_value_t = Profile::Dist)]
    profile: Profile,
    /// File for every sample, as JSON; the table goes beside it as Markdown. Default: `bench/result.json` in the target
    /// directory.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Arguments that are passed to the harness unchanged; `-- --help` lists them.
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if !process::is_root() {
        bail!(
            "the benchmark makes network namespaces, which needs root: run `sudo -E env PATH=\"$PATH\" cargo xtask bench`"
        );
    }
    tools::ensure(&tools::BENCH)?;
    let work = workspace::target_dir().join("bench");
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let sources = workspace::root().join("tests/bench");
    let load = work.join("mbload");
    process::exec(
        process::command("cc")
            .args(["-O2", "-Wall", "-Wextra", "-o"])
            .arg(&load)
            .arg(sources.join("mbload.c")),
    )?;

    let mut harness = process::command("python3");
    harness.arg("-B").arg(sources.join("bench.py"));
    harness.env("BENCH_MBLOAD", &load).env("BENCH_NGINX", tools::nginx()?);
    let mut sut = options.sut.clone();
    if sut.split(',').any(|name| name.starts_with("sluice")) {
        build::all(options.profile)?;
        harness.env("SLUICE_BIN", workspace::binary("sluice", options.profile));
    }
    if let Some(ztunnel) = &options.ztunnel {
        tools::ensure(&tools::ZTUNNEL)?;
        let binary = ztunnel
            .canonicalize()
            .with_context(|| format!("no ztunnel at {}", ztunnel.display()))?;
        harness.env("ZTUNNEL_BIN", binary);
        if !sut.split(',').any(|name| name.starts_with("ztunnel")) {
            sut.push_str(",ztunnel");
        }
    }
    ensure!(
        options.ztunnel.is_some() || !sut.split(',').any(|name| name.starts_with("ztunnel")),
        "to measure ztunnel, give its path with --ztunnel"
    );
    let out = options.out.clone().unwrap_or_else(|| work.join("result.json"));
    harness.arg("--sut").arg(sut).arg("--runs").arg(options.runs.to_string());
    harness.arg("--scopes").arg(&options.scopes).arg("--tests").arg(&options.tests);
    harness.arg("--out").arg(out).arg("--workdir").arg(work.join("work")).args(&options.arguments);
    // Replaces this process: Ctrl-C then reaches the harness alone, which removes its namespaces.
    Err(process::become_program(&mut harness))
}
