//! `cargo xtask cluster`: a real Kubernetes of two nodes on this machine, for development and for the tests.
//!
//! No part of it is imitated: the API server, etcd, two kubelets with a containerd each, kube-proxy and `CoreDNS` are
//! the published programs, built once from Go modules. A node is a network namespace, a mount namespace in which the
//! standard paths (`/etc/cni/net.d`, `/var/lib/kubelet`, `/sys/fs/bpf`, ...) are its own, and a cgroup subtree.
//! Everything that belongs to an instance is below its directory (`/run/sluice-cluster/NAME`), its directory for images
//! (`/var/lib/sluice-cluster/NAME`) or its cgroup, where `down` finds it even after a crash.

mod cgroups;
mod control;
mod down;
mod instance;
mod network;
mod node;
mod pki;
mod programs;
mod suite;
mod unit;
mod up;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use self::{instance::Instance, unit::Unit};
use crate::{image, process, tools, workspace::Profile};

pub(crate) use self::{
    programs::{COREDNS, helm},
    suite::{Suite, has_api_server, has_cni_tools, is_ci},
};

/// A real two-node Kubernetes on this machine, dual stack, with the image of this tree.
#[derive(Args)]
pub(crate) struct Options {
    /// Which cluster: several can run side by side.
    #[arg(long, global = true, default_value = "dev", value_name = "NAME")]
    instance: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Start it, or bring the images of a running one up to date.
    Up(up::Options),
    /// Remove it with everything that runs in it.
    Down,
    /// Run kubectl on it.
    #[command(disable_help_flag = true)]
    Kubectl(Arguments),
    /// Run helm on it.
    #[command(disable_help_flag = true)]
    Helm(Arguments),
    /// Run a program in the network and mount namespaces of a node.
    Exec {
        /// `n1`, `n2`, or `control`.
        place: String,
        #[command(flatten)]
        command: Arguments,
    },
    /// Kill a component, as a crash would: `stop n1/kubelet`. Pods keep running.
    Stop {
        /// The component as `PLACE/NAME`; the directory `units` lists all of them.
        unit: String,
    },
    /// Start a component that has ended: `start n1/kubelet`.
    Start {
        /// The component as `PLACE/NAME`; the directory `units` lists all of them.
        unit: String,
    },
    /// Only build the programs into the user's cache (about ten minutes, once).
    Build,
}

#[derive(Args)]
struct Arguments {
    /// Arguments that are passed on unchanged.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    arguments: Vec<String>,
}

/// Builds everything that a cluster needs; `up` then only has to start it.
pub(crate) fn prepare() -> Result<()> {
    tools::ensure(&tools::CLUSTER)?;
    programs::ensure()?;
    image::build(Profile::Release).map(drop)
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if matches!(options.action, Action::Build) {
        return programs::ensure().map(drop);
    }
    if !process::is_root() {
        bail!(
            "the cluster is made of namespaces, mounts and cgroups, which needs root: run \
             `sudo -E env PATH=\"$PATH\" cargo xtask cluster ...`"
        );
    }
    let instance = Instance::named(&options.instance)?;
    match &options.action {
        Action::Up(options) => up::run(&instance, options),
        Action::Down => down::run(&instance),
        Action::Kubectl(arguments) => become_client(&instance, "kubectl", arguments),
        Action::Helm(arguments) => become_client(&instance, "helm", arguments),
        Action::Exec { place, command } => become_inside(&instance, place, command),
        Action::Stop { unit } => {
            instance.require_up()?;
            Unit::find(&instance, unit)?.stop()
        }
        Action::Start { unit } => {
            instance.require_up()?;
            Unit::find(&instance, unit)?.start()
        }
        Action::Build => Ok(()),
    }
}

/// Replaces this process by kubectl or helm. It stays in this machine's own network namespace, where the developer can
/// use what `kubectl port-forward` listens on.
fn become_client(instance: &Instance, program: &str, arguments: &Arguments) -> Result<()> {
    instance.require_up()?;
    let mut command = process::command(instance.program(program));
    command.env("KUBECONFIG", instance.kubeconfig()).args(&arguments.arguments);
    Err(process::become_program(&mut command))
}

fn become_inside(instance: &Instance, place: &str, command: &Arguments) -> Result<()> {
    instance.require_up()?;
    let mut inside = process::command("nsenter");
    inside.args(node::namespaces(instance, place)?).arg("--");
    inside.env("PATH", instance.path_variable()).args(&command.arguments);
    Err(process::become_program(&mut inside))
}
