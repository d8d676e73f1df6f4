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
    #[command(after_help = EXIT_CODES)]
    Status(ViewOptions),
    /// Show certificates, roots and revocation lists, and which of them has expired or is about to.
    #[command(after_help = EXIT_CODES)]
    Certs(ViewOptions),
    /// Show the connections that are open now.
    #[command(after_help = EXIT_CODES)]
    Flows(ViewOptions),
    /// Take every pod out of the mesh before the chart is deleted; `helm uninstall` runs it.
    Uninstall(UninstallOptions),
    /// Show the policies in force, and what of them is narrowed or refused; or check files before they are applied.
    #[command(after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
    Policy(PolicyOptions),
    /// Check kernels, CNI, permissions, policies, certificates and clocks, each with what to do.
    #[command(after_help = EXIT_CODES)]
    Check(ViewOptions),
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

/// Which installation to take down.
#[derive(Debug, Args)]
pub(crate) struct UninstallOptions {
    /// Namespace of the agents.
    #[arg(long, value_name = "NAME", default_value = "sluice-system")]
    pub(crate) namespace: String,
    /// The agents' DaemonSet.
    #[arg(long, value_name = "NAME", default_value = "sluice-agent")]
    pub(crate) daemon_set: String,
    /// How long the agents may take, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(crate) timeout: u64,
    /// The cluster's administrator; the service account of the pod when not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// The text below the help of the operator's commands.
const EXIT_CODES: &str = "\
Without options they ask the agent of this machine; where there is none, or when --kubeconfig, --context, --namespace \
or --node says so, those of all nodes, through the API server.

Exit codes:
  0  all is well
  1  something is wrong in the mesh: a pod that is not captured, an expired certificate, a refused policy, an agent
     that is missing or not ready
  2  somebody could not be asked: wrong kubeconfig, missing permission, unreachable agent; what others answered is
     printed all the same";

/// Which agents to ask, and how to print their answers.
#[derive(Debug, Args)]
pub(crate) struct ViewOptions {
    /// The socket of this machine's agent [default: /run/sluice/agent.sock].
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "context", "namespace", "node"])]
    pub(crate) socket: Option<PathBuf>,
    /// The cluster's kubeconfig [default: KUBECONFIG, or ~/.kube/config].
    #[arg(long, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one].
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The namespace that Sluice is installed in [default: sluice-system].
    #[arg(long, short, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    /// Only the agent of this node (repeatable).
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Vec<String>,
    /// How to print.
    #[arg(long, short, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// Whether to show policies in force, or to check others.
#[derive(Debug, Args)]
pub(crate) struct PolicyOptions {
    #[command(subcommand)]
    pub(crate) action: Option<PolicyAction>,
    #[command(flatten)]
    pub(crate) view: ViewOptions,
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
    /// Say what of them is not enforced as written; ends with 1 when something is refused, with 2 when a file cannot
    /// be read. Asks nobody.
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
