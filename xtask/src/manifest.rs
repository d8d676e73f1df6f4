//! `cargo xtask manifest`: the chart as one plain manifest, for clusters that are managed without helm.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{cluster, process, workspace};

/// Write `deploy/sluice.yaml`: what the chart with its own values makes, for `kubectl apply`.
#[derive(Args)]
pub(crate) struct Options {
    /// Change nothing: fail if the file is not what the chart makes now.
    #[arg(long)]
    check: bool,
}

pub(crate) const FILE: &str = "deploy/sluice.yaml";
/// The Kubernetes version by which the chart judges what the cluster can do, fixed to make the same file everywhere.
const KUBERNETES: &str = "1.36.0";
const HEAD: &str = "\
# Made from deploy/helm/sluice by `cargo xtask manifest`; change that and run it again.
#
#   kubectl create -f helm/sluice/crds  (leaves definitions alone that are there already: Istio's serve as well)
#   kubectl apply -f sluice.yaml
#
# Before it is deleted, every pod has to leave the mesh, which `helm uninstall` does by itself:
#
#   sluice uninstall --kubeconfig FILE  (or: kubectl -n sluice-system annotate daemonset sluice-agent
#                                        sluice.dev/uninstall=true, and wait until every agent's pod has the
#                                        annotation sluice.dev/left)
#   kubectl delete -f sluice.yaml
#
# The definitions stay: with them, every policy of the cluster would go.
apiVersion: v1
kind: Namespace
metadata:
  name: sluice-system
  labels:
    pod-security.kubernetes.io/enforce: privileged
";

/// The result of the check.
pub(crate) enum Checked {
    InStep,
    OutOfStep,
    /// Not checked, because there is no helm.
    NoHelm,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.check {
        return match check()? {
            Checked::InStep => Ok(()),
            Checked::OutOfStep => {
                bail!("{FILE} is not what the chart makes: run `cargo xtask manifest`")
            }
            Checked::NoHelm => {
                bail!("{FILE} is not checked: there is no helm, and no Go to build it")
            }
        };
    }
    let Some(helm) = cluster::helm(true)? else {
        bail!("there is no helm, and no Go to build it: install either");
    };
    let path = workspace::root().join(FILE);
    fs::write(&path, render(&helm)?).with_context(|| format!("cannot write {}", path.display()))
}

/// Checks whether the file is what the chart makes. In CI, helm is built if it is missing, and it is an error if that
/// is not possible.
pub(crate) fn check() -> Result<Checked> {
    let is_ci = cluster::is_ci();
    let Some(helm) = cluster::helm(is_ci)? else {
        if is_ci {
            bail!("{FILE} cannot be checked: there is no helm, and no Go to build it");
        }
        return Ok(Checked::NoHelm);
    };
    let path = workspace::root().join(FILE);
    let written = fs::read_to_string(&path).unwrap_or_default();
    Ok(if written == render(&helm)? { Checked::InStep } else { Checked::OutOfStep })
}

fn render(helm: &Path) -> Result<String> {
    let mut helm = process::command(helm);
    helm.current_dir(workspace::root());
    helm.args(["template", "sluice", "deploy/helm/sluice", "--namespace", "sluice-system"]);
    helm.args(["--skip-crds", "--no-hooks", "--kube-version", KUBERNETES]);
    Ok(format!("{HEAD}{}", process::output(&mut helm)?))
}
