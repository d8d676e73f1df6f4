//! `cargo xtask test`: unit, property and namespace tests as one command.

use std::{fs, process::Command, thread};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build, cluster, process, tools,
    workspace::{self, Profile},
};

/// Set up, then run every test: unit, property, and those in network namespaces.
#[derive(Args)]
pub(crate) struct Options {
    /// The long tests at full size: 200,000 connections, 10 GB, 10,000 at once.
    #[arg(long)]
    full: bool,
    /// Leave out the tests that need the two-node Kubernetes.
    #[arg(long)]
    no_cluster: bool,
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
    let (on_cluster, others) = suites()?;
    let mut cargo = command(options, &["--workspace", "--exclude", "sluice-tests"]);
    let mut outcomes = vec![run_tests(&mut cargo, options)];
    let targets: Vec<&str> = others.iter().flat_map(|suite| ["--test", suite.as_str()]).collect();
    let mut cargo = command(options, &["--package", "sluice-tests", "--lib", "--bins"]);
    outcomes.push(run_tests(cargo.args(targets), options));
    if !options.no_cluster {
        outcomes.push(run_on_cluster(options, &on_cluster));
    }
    outcomes.into_iter().collect()
}

/// Tests of the whole on a real Kubernetes, which is made for them if any of them is asked for.
fn run_on_cluster(options: &Options, suites: &[String]) -> Result<()> {
    let targets: Vec<&str> = suites.iter().flat_map(|suite| ["--test", suite.as_str()]).collect();
    let cargo = || {
        let mut cargo = command(options, &["--package", "sluice-tests"]);
        cargo.args(&targets);
        cargo
    };
    let listed =
        process::output(cargo().arg("--quiet").args(&options.filter).args(["--", "--list"]))?;
    if !listed.lines().any(|line| line.ends_with(": test")) {
        return Ok(());
    }
    let Some(cluster) = cluster::Suite::start()? else { return Ok(()) };
    let mut cargo = cargo();
    cluster.tell(&mut cargo);
    // One at a time: each has the nodes' two processors to itself.
    cargo.env("RUST_TEST_THREADS", "1");
    run_tests(&mut cargo, options)
}

/// The files of `tests/tests`, and its directories with a `main.rs`: those that need a cluster, by their name, and the others.
fn suites() -> Result<(Vec<String>, Vec<String>)> {
    let directory = workspace::root().join("tests/tests");
    let entries =
        fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let names = entries.flatten().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_directory = entry.path().join("main.rs").is_file();
        name.strip_suffix(".rs")
            .or_else(|| is_directory.then_some(name.as_str()))
            .map(str::to_owned)
    });
    let (mut on_cluster, mut others): (Vec<_>, Vec<_>) =
        names.partition(|name| name.starts_with("cluster_"));
    on_cluster.sort();
    others.sort();
    Ok((on_cluster, others))
}

fn command(options: &Options, which: &[&str]) -> Command {
    let mut cargo = process::cargo();
    cargo.current_dir(workspace::root());
    // To the end even when one fails: the next run should not be needed to hear of the second.
    cargo.args(["test", "--release", "--no-fail-fast"]).args(which);
    cargo.env("RUST_TEST_THREADS", test_threads().to_string());
    cargo.env("SLUICE_BIN", workspace::binary("sluice", Profile::Release));
    if options.full {
        cargo.env("SLUICE_FULL", "1");
    }
    cargo
}

fn run_tests(cargo: &mut Command, options: &Options) -> Result<()> {
    cargo.args(&options.filter);
    process::exec(cargo.arg("--").args(&options.arguments))
}

/// A namespace test runs two agents and their clients and asserts times: leave each two processors.
fn test_threads() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, 2)
}
