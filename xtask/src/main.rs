//! The entry point for developers: `cargo xtask <command>` does everything that a contributor does by hand elsewhere.
//!
//! Each command is one file with `Options` and `run()`. If something is missing, the command installs it where it may
//! (as root with apt, or through rustup), after one line that says so; otherwise it fails with the command to type.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line tool talks to its user"
)]

mod apt;
mod bench;
mod bpf_linker;
mod bpf_toolchain;
mod build;
mod cluster;
mod demo;
mod image;
mod kernel;
mod load;
mod manifest;
mod process;
mod test;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, load, demonstrate, test and measure Sluice.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Build(build::Options),
    Load(load::Options),
    Demo(demo::Options),
    Test(test::Options),
    Bench(bench::Options),
    Cluster(cluster::Options),
    Image(image::Options),
    Manifest(manifest::Options),
    Tidy(tidy::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Build(options) => build::run(&options),
        Command::Load(options) => load::run(&options),
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Cluster(options) => cluster::run(&options),
        Command::Image(options) => image::run(&options),
        Command::Manifest(options) => manifest::run(&options),
        Command::Tidy(options) => tidy::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
