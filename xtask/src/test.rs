//! `cargo xtask test`: unit, property and namespace tests as one command.

mod kernels;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    build, cluster, process, tools,
    workspace::{self, Profile},
};

/// The suite that calls the CNI plugin as a container runtime does.
const CNI_PLUGIN: &str = "cni_plugin";
/// The suite that follows the mesh at an API server of its own.
const API_SERVER: &str = "follows";
/// The suite whose tests mostly wait for certificates to age, and how many of them may wait at the same time.
const TRUST: &str = "trust_live";
const TRUST_THREADS: &str = "3";
/// The suite that tests the kernel programs on their own.
const KERNEL_PROGRAMS: &str = "kernel";

/// Set up, then run every test: unit, property, and those in network namespaces.
#[derive(Args)]
pub(crate) struct Options {
    /// The long tests at full size: 200,000 connections, 10 GB, 10,000 at once.
    #[arg(long)]
    full: bool,
    /// Leave out the tests that need the two-node Kubernetes.
    #[arg(long)]
    no_cluster: bool,
    /// Run only the tests of the kernel programs and those in namespaces, on another kernel in qemu: Debian's of this
    /// series (6.1), or the one at this path.
    #[arg(long, value_name = "SERIES|PATH")]
    kernel: Option<String>,
    /// Only tests whose name contains this.
    filter: Option<String>,
    /// Arguments that are passed to the test programs unchanged, e.g. `-- --nocapture`.
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
    let root = workspace::root();
    let (on_cluster, mut on_nodes): (Vec<_>, Vec<_>) =
        suites(&root.join("tests"))?.into_iter().partition(|name| name.starts_with("cluster_"));
    let has_cni_tools = cluster::has_cni_tools()?;
    on_nodes.retain(|suite| has_cni_tools || suite != CNI_PLUGIN);
    if let Some(kernel) = &options.kernel {
        let arguments: Vec<_> = options.filter.iter().chain(&options.arguments).cloned().collect();
        on_nodes.insert(0, KERNEL_PROGRAMS.to_owned());
        return kernels::run(&mut command(options), kernel, &on_nodes, &arguments);
    }
    on_nodes.retain(|suite| suite != TRUST);
    let packages =
        [crates(&root.join("agent"))?, crates(&root.join("ebpf"))?, vec![root.join("xtask")]];
    let of_crates: Vec<Vec<_>> =
        packages.concat().iter().map(|package| suites(package)).collect::<Result<_>>()?;
    let mut of_crates = of_crates.concat();
    of_crates.retain(|suite| suite != API_SERVER);
    let mut outcomes = vec![
        run_tests(command(options).args(["--lib", "--bins"]).args(named(&of_crates)), options),
        run_tests(command(options).arg("--doc"), options),
        run_tests(command(options).args(named(&on_nodes)), options),
        run_tests(
            command(options).args(["--test", TRUST]).env("RUST_TEST_THREADS", TRUST_THREADS),
            options,
        ),
    ];
    if !options.no_cluster {
        outcomes.push(run_beside_api_server(options));
        outcomes.push(run_on_cluster(options, &on_cluster));
    }
    if options.filter.is_none() {
        outcomes.push(kernels::run_few(&mut command(options)));
    }
    outcomes.into_iter().collect()
}

/// Runs the tests that start an API server. It is built only if the filter selects any of them.
fn run_beside_api_server(options: &Options) -> Result<()> {
    let suites = [API_SERVER.to_owned()];
    if !selects(options, &suites)? || !cluster::has_api_server()? {
        return Ok(());
    }
    run_tests(command(options).args(named(&suites)), options)
}

/// Runs the end-to-end tests on a real Kubernetes, which is made only if the filter selects any of them.
fn run_on_cluster(options: &Options, suites: &[String]) -> Result<()> {
    if !selects(options, suites)? {
        return Ok(());
    }
    let Some(cluster) = cluster::Suite::start()? else { return Ok(()) };
    let mut cargo = command(options);
    cluster.tell(cargo.args(named(suites)));
    // One at a time: each has the nodes' two processors to itself.
    cargo.env("RUST_TEST_THREADS", "1");
    run_tests(&mut cargo, options)
}

/// Returns whether the filter selects any test of these suites.
fn selects(options: &Options, suites: &[String]) -> Result<bool> {
    let mut cargo = command(options);
    cargo.args(named(suites)).arg("--quiet").args(&options.filter).args(["--", "--list"]);
    Ok(process::output(&mut cargo)?.lines().any(|line| line.ends_with(": test")))
}

fn crates(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut crates = entries(directory)?;
    crates.retain(|path| path.join("Cargo.toml").is_file());
    Ok(crates)
}

/// Returns the names of a crate's test programs: the files in its `tests`, and the directories with a `main.rs`.
fn suites(package: &Path) -> Result<Vec<String>> {
    let directory = package.join("tests");
    if !directory.is_dir() {
        return Ok(Vec::new());
    }
    let name = |path: PathBuf| {
        let is_suite = path.extension().is_some_and(|extension| extension == "rs")
            || path.join("main.rs").is_file();
        let name = path.file_stem().filter(|_| is_suite)?;
        Some(name.to_string_lossy().into_owned())
    };
    Ok(entries(&directory)?.into_iter().filter_map(name).collect())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

fn named(suites: &[String]) -> impl Iterator<Item = &str> {
    suites.iter().flat_map(|suite| ["--test", suite.as_str()])
}

/// Returns a `cargo test` of the whole workspace, whichever targets the caller then names: dependencies have the same
/// features each time, and are compiled once.
fn command(options: &Options) -> Command {
    let mut cargo = process::cargo();
    cargo.current_dir(workspace::root());
    // Goes on after a failure: one run should report all of them.
    cargo.args(["test", "--release", "--no-fail-fast", "--workspace"]);
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

/// Returns how many tests run at once. A namespace test runs two agents and their clients and asserts times, so it gets
/// two processors.
fn test_threads() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    (processors / 2).clamp(1, 2)
}
