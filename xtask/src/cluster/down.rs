//! `cargo xtask cluster down`: removes a whole cluster, whichever parts have ended before and however.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};
use rustix::mount::{UnmountFlags, unmount};

use super::{
    cgroups::Hierarchies,
    instance::{Instance, Turn},
    network, node,
};

pub(crate) fn run(instance: &Instance) -> Result<()> {
    let turn = Turn::wait()?;
    let started = Instant::now();
    let existed = instance.exists();
    remove(instance, &turn)?;
    if existed {
        let seconds = started.elapsed().as_secs_f32();
        println!("cluster `{}` is gone after {seconds:.1} s", instance.name());
    } else {
        println!("there is no cluster `{}`", instance.name());
    }
    Ok(())
}

/// Removes everything that is there; each step looks on the machine for what is left.
pub(crate) fn remove(instance: &Instance, _turn: &Turn) -> Result<()> {
    let hierarchies = Hierarchies::find()?;
    hierarchies.kill(instance)?;
    if let Some(addresses) = instance.addresses() {
        network::remove(addresses)?;
    }
    // This removes the last pin of a node's mount namespace. The namespace's mounts go with it, and with its BPF file
    // system the kernel programs pinned there.
    unmount_below(instance.directory())?;
    hierarchies.remove(instance)?;
    for directory in [&instance.on_disk(), instance.directory()] {
        if directory.exists() {
            fs::remove_dir_all(directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
        }
    }
    // Removes the directory of all clusters' images if this was the last cluster; otherwise it is not empty and stays.
    if let Some(shared) = instance.on_disk().parent() {
        fs::remove_dir(shared).ok();
    }
    if instance.is_alone() {
        node::remove_mount_points();
    }
    Ok(())
}

/// Unmounts what is mounted at or below a directory, newest first.
fn unmount_below(directory: &Path) -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let ours: Vec<&Path> = points.filter(|point| point.starts_with(directory)).collect();
    for point in ours.into_iter().rev() {
        unmount(point, UnmountFlags::DETACH)
            .with_context(|| format!("cannot unmount {}", point.display()))?;
    }
    Ok(())
}
