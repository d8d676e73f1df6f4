//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Mutual TLS and identity-based authorization for every pod, without sidecars.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node agent.
    Agent(AgentOptions),
    /// Run the certificate authority for the agents of all nodes.
    Controller(ControllerOptions),
    /// Show pods, their capture, certificates, policies and counters.
    Status(ViewOptions),
    /// Show certificates, roots and revocation lists; ends with 2 when one has expired or is about to.
    Certs(ViewOptions),
    /// Show the connections that are open now.
    Flows(ViewOptions),
    /// Check policies before they are applied.
    #[command(subcommand)]
    Policy(PolicyAction),
    /// Load, verify or remove the kernel programs by hand.
    #[command(subcommand)]
    Datapath(DatapathAction),
}

/// How to run the agent.
#[derive(Debug, Args)]
pub(crate) struct AgentOptions {
    /// The agent's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// How to run the controller.
#[derive(Debug, Args)]
pub(crate) struct ControllerOptions {
    /// The controller's configuration (YAML).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// Which agent to ask, and how to print its answer.
#[derive(Debug, Args)]
pub(crate) struct ViewOptions {
    /// The agent's socket.
    #[arg(long, value_name = "PATH", default_value = "/run/sluice/agent.sock")]
    pub(crate) socket: PathBuf,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// How to print an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyAction {
    /// Say what of them is not enforced as written; ends with 1 when something is refused. Asks nobody.
    Check(CheckOptions),
}

/// Which policies to check, and how to print what there is to say.
#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    /// Files, directories of .yaml, .yml and .json files, or - for standard input.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Namespace whose policies are those of the whole mesh.
    #[arg(long, value_name = "NAME", default_value = "istio-system")]
    pub(crate) root_namespace: String,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// What to do with the kernel programs.
#[derive(Debug, Subcommand)]
pub(crate) enum DatapathAction {
    /// Load and attach them on this machine, without an agent.
    Load(Place),
    /// Load them through the kernel's verifier and let go of them again.
    Verify(Place),
    /// Remove everything of an instance from the kernel: its pods leave the mesh.
    Unload(Place),
}

/// Which instance, and where.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Name of the instance, which names its directory of pins.
    #[arg(long, default_value = "manual")]
    pub(crate) instance: String,
    /// Where the BPF file system is mounted, or will be.
    #[arg(long, value_name = "PATH", default_value = "/sys/fs/bpf")]
    pub(crate) bpffs: PathBuf,
    /// The cgroup v2 directory to attach to; found in /proc/mounts when not given.
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup: Option<PathBuf>,
}
