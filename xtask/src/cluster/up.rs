//! `cargo xtask cluster up`: from nothing to two ready nodes with `CoreDNS` and the images of this tree.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

use super::{
    cgroups::Hierarchies,
    control, down,
    instance::{CONTROL, Instance, NODES, Turn},
    network, node, pki, programs,
    unit::Unit,
};
use crate::{image, process, tools, workspace::Profile};

/// How long a part may take to become ready on a machine that is also compiling.
const PATIENCE: Duration = Duration::from_mins(3);

#[derive(Args)]
pub(crate) struct Options {
    /// Leave out the images of this tree: the agent's and the tests'.
    #[arg(long)]
    no_image: bool,
    /// How the agent in the image is compiled.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
}

// === impl Options ===

impl Options {
    /// Returns the options for the tests' cluster.
    pub(crate) fn for_tests() -> Self {
        Self { no_image: false, profile: Profile::Release }
    }
}

pub(crate) fn run(instance: &Instance, options: &Options) -> Result<()> {
    tools::ensure(&tools::CLUSTER)?;
    let programs = programs::ensure()?;
    let images = if options.no_image { Vec::new() } else { image::build(options.profile)? };
    let turn = Turn::wait()?;
    let started = Instant::now();
    if instance.is_complete() && ended(instance).is_empty() {
        println!("cluster `{}` is up", instance.name());
    } else {
        if instance.exists() {
            report_remains(instance);
            down::remove(instance, &turn)?;
        }
        programs.link_into(&instance.path("bin"))?;
        make(instance, &turn).with_context(|| {
            format!(
                "the cluster did not come up; logs: {}/units/*/*.log; remove it with `cargo xtask cluster down`",
                instance.directory().display()
            )
        })?;
        instance.set_complete()?;
    }
    import(instance, &images)?;
    if !images.is_empty() {
        link_operators_program(instance, options.profile)?;
    }
    println!("up after {:.1} s", started.elapsed().as_secs_f32());
    explain(instance, &images);
    Ok(())
}

/// Puts the operator's `sluice` beside kubectl and helm.
fn link_operators_program(instance: &Instance, profile: Profile) -> Result<()> {
    let link = instance.program("sluice");
    if link.is_symlink() {
        fs::remove_file(&link).with_context(|| format!("cannot remove {}", link.display()))?;
    }
    symlink(image::operators_program(profile), &link)
        .with_context(|| format!("cannot make {}", link.display()))
}

/// Returns the components that should run and do not.
fn ended(instance: &Instance) -> Vec<String> {
    let units = Unit::all(instance);
    units.iter().filter(|unit| unit.pid().is_none()).map(Unit::shown).collect()
}

fn report_remains(instance: &Instance) {
    let ended = ended(instance);
    if instance.is_complete() {
        println!("{} has ended: making the cluster anew", ended.join(", "));
    } else {
        println!("an earlier start did not finish: making the cluster anew");
    }
}

fn make(instance: &Instance, turn: &Turn) -> Result<()> {
    let addresses = instance.claim(turn)?;
    make_private(instance.directory())?;
    let hierarchies = Hierarchies::find()?;
    node::make_mount_points()?;
    let places = [CONTROL].into_iter().chain(NODES.iter().map(|node| node.name));
    for place in places {
        hierarchies.make(instance, place)?;
        node::hold(instance, place)?;
    }
    network::make(instance, addresses)?;
    pki::make(instance, addresses)?;
    say("starting etcd, the API server and containerd");
    control::start_api(instance, addresses)?;
    for node in NODES {
        node::start_containerd(instance, node)?;
    }
    let images = image::for_cluster(instance.directory(), &instance.program("coredns"))?;
    await_part(instance, "the API server", CONTROL, || control::is_ready(instance))?;
    say("starting controllers, kubelets and kube-proxies");
    control::start_controllers(instance)?;
    for node in NODES {
        node::await_containerd(instance, node)?;
        node::start_kubelet(instance, addresses, node)?;
    }
    import(instance, &images)?;
    for image in &images {
        fs::remove_file(image).with_context(|| format!("cannot remove {}", image.display()))?;
    }
    control::apply_dns(instance, &image::coredns_name())?;
    for node in NODES {
        await_part(instance, node.name, node.name, || is_node_ready(instance, node.name))?;
    }
    say("waiting for CoreDNS");
    let mut rollout = control::kubectl(instance);
    rollout.args([
        "-n",
        "kube-system",
        "rollout",
        "status",
        "deployment/coredns",
        "--timeout=180s",
    ]);
    process::output(&mut rollout).map(drop)
}

/// Makes the directory a private mount: namespaces can be pinned only where mounts do not propagate.
fn make_private(directory: &Path) -> Result<()> {
    mount_bind(directory, directory)
        .and_then(|()| mount_change(directory, MountPropagationFlags::PRIVATE))
        .with_context(|| format!("cannot make {} a mount of its own", directory.display()))
}

fn is_node_ready(instance: &Instance, node: &str) -> bool {
    let path = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    process::output(control::kubectl(instance).args(["get", "node", node, "-o", path]))
        .is_ok_and(|status| status == "True")
}

fn await_part(
    instance: &Instance,
    part: &str,
    place: &str,
    is_ready: impl Fn() -> bool,
) -> Result<()> {
    let is_dead = || {
        let units = Unit::all(instance);
        let here = |unit: &&Unit| unit.shown().starts_with(place) && unit.pid().is_none();
        units.iter().find(here).map(|unit| (unit.shown(), unit.last_words()))
    };
    wait_until(PATIENCE, || is_ready() || is_dead().is_some())
        .with_context(|| format!("{part} is not ready"))?;
    match is_dead() {
        Some((unit, words)) => bail!("{unit} has ended; it said:\n{words}"),
        None => Ok(()),
    }
}

/// Waits for a condition; the error says how long it waited.
pub(crate) fn wait_until(patience: Duration, condition: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !condition() {
        if Instant::now() > deadline {
            bail!("waited {} s in vain", patience.as_secs());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Gives the images to both containerds, at the same time.
fn import(instance: &Instance, images: &[PathBuf]) -> Result<()> {
    let import_one = |place: &str, image: &Path| -> Result<()> {
        let mut ctr = process::command("nsenter");
        ctr.args(node::namespaces(instance, place)?).arg("--").arg(instance.program("ctr"));
        ctr.args(["--namespace", "k8s.io", "images", "import", "--local"]).arg(image);
        process::output(&mut ctr).map(drop)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = NODES
            .iter()
            .map(|node| {
                scope
                    .spawn(move || images.iter().try_for_each(|image| import_one(node.name, image)))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().map_err(|_panic| anyhow::anyhow!("importing images panicked"))?
        })
    })
}

fn explain(instance: &Instance, images: &[PathBuf]) {
    let name = instance.name();
    let option = if name == "dev" { String::new() } else { format!(" --instance {name}") };
    println!("\n  export KUBECONFIG={}", instance.kubeconfig().display());
    println!("  export PATH={}:$PATH   # kubectl, helm, sluice", instance.path("bin").display());
    println!(
        "  helm install sluice deploy/helm/sluice --namespace sluice-system --create-namespace --wait"
    );
    if !images.is_empty() {
        println!("\nimages on both nodes: {}, {}", image::sluice_name(), image::lab_name());
    }
    println!("logs: {}/units/*/*.log", instance.directory().display());
    println!("remove it: cargo xtask cluster{option} down");
}

fn say(what: &str) {
    println!("{what}");
}
