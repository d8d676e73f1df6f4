//! `sluice-lab`: the demo, and the programs that the lab runs inside pods.

use std::{
    io::{Write as _, stdout},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use sluice_tests::escape::donor;

/// Namespaces, agents and traffic on one machine.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Removes what runs that were killed have left behind.
    Clean,
    /// Sends a text to an address and prints what comes back.
    Send {
        /// Where to.
        target: SocketAddr,
        /// What.
        text: String,
    },
    /// Makes a socket in another control group and hands it over.
    #[command(hide = true)]
    DonateSocket {
        /// The Unix socket of the receiver.
        #[arg(long)]
        to: PathBuf,
        /// The group to make it in.
        #[arg(long)]
        cgroup: PathBuf,
        /// An IPv6 socket.
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
        Command::Clean => sluice_tests::cleanup::remove_leftovers()?,
        Command::Send { target, text } => send(target, &text)?,
        Command::DonateSocket { to, cgroup, ipv6 } => donor::donate(&to, &cgroup, ipv6)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn send(target: SocketAddr, text: &str) -> Result<()> {
    use std::{io::Read as _, net::TcpStream, time::Duration};
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&target, patience).context("connect")?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    Ok(stdout().write_all(&answer)?)
}
