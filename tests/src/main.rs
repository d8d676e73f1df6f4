//! `sluice-lab`: the demo, and the programs that the lab runs inside pods.

use std::{io::Write as _, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::{Parser, Subcommand};
use sluice_tests::{
    demo,
    escape::donor,
    knock::{self, Knocking},
    programs,
};

/// Namespaces, agents and traffic on one machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows the mesh at work on this machine, and leaves the machine as it was.
    Demo,
    /// Shows the mesh on a real Kubernetes, and removes that again.
    ClusterDemo {
        /// The program that makes clusters.
        #[arg(long)]
        xtask: PathBuf,
    },
    /// Removes what killed runs have left behind.
    Clean,
    /// Sends a text to an address and prints what comes back.
    Send {
        /// The server's address.
        target: SocketAddr,
        /// The text to send.
        text: String,
    },
    /// Runs a small SMTP server: it speaks first, and prints each line of mail with its client's address.
    MailServer {
        /// The port to listen on, on every address.
        #[arg(long)]
        port: u16,
    },
    /// Runs an echo server on every address.
    Echo {
        /// The port to listen on.
        #[arg(long)]
        port: u16,
    },
    /// Opens many connections to an echo server, holds them, and uses each once more.
    Hold {
        /// The server's address.
        target: SocketAddr,
        /// How many connections to open.
        #[arg(long)]
        count: usize,
        /// How long to hold them, in seconds.
        #[arg(long, default_value_t = 2)]
        seconds: u64,
    },
    /// Opens connections to an echo server at a steady rate, and prints what goes wrong.
    Knock {
        /// The server's address.
        target: SocketAddr,
        /// The text to send on each connection.
        text: String,
        /// How many connections to open per second.
        #[arg(long, default_value_t = 200)]
        rate: u32,
        /// How long each connection stays open, in milliseconds.
        #[arg(long, default_value_t = 0)]
        hold: u64,
        /// How long to go on, in seconds.
        #[arg(long)]
        seconds: u64,
    },
    /// Makes a socket in another control group and hands it over.
    #[command(hide = true)]
    DonateSocket {
        /// The Unix socket of the receiver.
        #[arg(long)]
        to: PathBuf,
        /// The control group to make the socket in.
        #[arg(long)]
        cgroup: PathBuf,
        /// Make an IPv6 socket.
        #[arg(long)]
        ipv6: bool,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            // Standard error may be closed; there is nowhere else to say so.
            writeln!(std::io::stderr(), "sluice-lab: {error:#}").ok();
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Demo => demo::run()?,
        Command::ClusterDemo { xtask } => demo::cluster::run(&xtask)?,
        Command::Clean => sluice_tests::cleanup::remove_leftovers()?,
        Command::Send { target, text } => programs::send(target, &text)?,
        Command::MailServer { port } => programs::mail_server(port)?,
        Command::Echo { port } => programs::echo_server(port)?,
        Command::Hold { target, count, seconds } => {
            programs::hold(target, count, Duration::from_secs(seconds))?;
        }
        Command::Knock { target, text, rate, hold, seconds } => knock::knock(&Knocking {
            target,
            text,
            rate: rate.max(1),
            hold: Duration::from_millis(hold),
            lasts: Duration::from_secs(seconds),
        })?,
        Command::DonateSocket { to, cgroup, ipv6 } => donor::donate(&to, &cgroup, ipv6)?,
    }
    Ok(ExitCode::SUCCESS)
}
