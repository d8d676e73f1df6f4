//! The `sluice` program: the node agent and the operator's commands.
#![forbid(unsafe_code)]

mod agent;
mod args;
mod authority;
mod cni;
mod controller;
mod datapath;
mod logging;
mod metrics;
mod policy_check;
mod view;

/// Keeps the memory of thousands of idle connections dense, and gives it back when they are gone.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Command, PolicyAction};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Certs(options) => return exit_code(view::certs::run(&options)),
        Command::Policy(PolicyAction::Check(options)) => {
            return exit_code(policy_check::run(&options));
        }
        Command::Agent(options) => agent::run(&options),
        Command::Controller(options) => controller::run(&options),
        Command::Status(options) => view::command::status(&options),
        Command::Flows(options) => view::command::flows(&options),
        Command::Datapath(action) => datapath::run(&action),
    };
    exit_code(result.map(|()| ExitCode::SUCCESS))
}

fn exit_code(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        logging::complain(&format!("sluice: {error:#}"));
        ExitCode::FAILURE
    })
}
