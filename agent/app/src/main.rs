//! The `sluice` program: the node agent and the operator's commands.
#![forbid(unsafe_code)]

mod agent;
mod args;
mod authority;
mod check;
mod cni;
mod controller;
mod datapath;
mod listen;
mod logging;
mod metrics;
mod policy_check;
mod uninstall;
mod view;

/// Keeps the memory of thousands of idle connections dense, and gives it back when they are gone.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Arguments, Command, PolicyAction, PolicyOptions};

fn main() -> ExitCode {
    let _log = logging::Flushed;
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Agent(options) => done(agent::run(&options)),
        Command::Controller(options) => done(controller::run(&options)),
        Command::Datapath(action) => done(datapath::run(&action)),
        Command::Status(options) => asked(view::show::<view::model::Status>(&options)),
        Command::Certs(options) => asked(view::show::<view::model::Certs>(&options)),
        Command::Flows(options) => asked(view::show::<view::model::Flows>(&options)),
        Command::Check(options) => asked(check::run(&options)),
        Command::Policy(PolicyOptions { action: Some(PolicyAction::Check(options)), .. }) => {
            asked(policy_check::run(&options))
        }
        Command::Uninstall(options) => done(uninstall::run(&options)),
        Command::Policy(PolicyOptions { action: None, view }) => {
            asked(view::show::<view::model::Policies>(&view))
        }
    }
}

fn done(result: anyhow::Result<()>) -> ExitCode {
    if let Err(error) = result {
        logging::complain(&format!("sluice: {error:#}"));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Returns the exit code of an operator's command; one that fails could not ask.
fn asked(result: anyhow::Result<ExitCode>) -> ExitCode {
    result.unwrap_or_else(|error| {
        logging::complain(&format!("sluice: {error:#}"));
        view::Health::Unknown.into()
    })
}
