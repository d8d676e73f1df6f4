//! `sluice datapath`: loads, verifies or removes the kernel programs by hand, without an agent.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use sluice_kernel::{Datapath, Report, Settings};

use crate::{
    args::{DatapathAction, Place},
    logging::print,
    view::table::Table,
};

/// Carries out one action and prints what the kernel made of it.
pub(crate) fn run(action: &DatapathAction) -> anyhow::Result<()> {
    match action {
        DatapathAction::Load(place) => {
            let datapath = Datapath::open(&settings(place)?)?;
            print(&report_text(&datapath.report()?))
        }
        DatapathAction::Verify(place) => {
            print(&report_text(&Datapath::verify_only(&settings(place)?)?))
        }
        DatapathAction::Unload(place) => {
            let removed = Datapath::remove(&place.bpffs, &place.instance)?;
            print(&format!(
                "removed {} pods, {} links, {} maps\n",
                removed.pods, removed.links, removed.maps
            ))
        }
    }
}

fn settings(place: &Place) -> anyhow::Result<Settings> {
    let cgroup = find_cgroup(place.cgroup.as_deref())?;
    Ok(Settings { bpffs: place.bpffs.clone(), cgroup, ..Settings::new(place.instance.as_str()) })
}

/// Finds the mounted cgroup v2 hierarchy at or below `within`, or the one that contains it; anywhere if none is given.
/// On a hybrid machine v2 is mounted below the v1 hierarchies' mount point, and a container of an agent has the node's
/// mount point beside its own.
pub(crate) fn find_cgroup(within: Option<&Path>) -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    cgroup_mount(&mounts, within).with_context(|| {
        let place = within.map(|path| format!(" at {} or below", path.display()));
        format!(
            "no cgroup v2 hierarchy is mounted{}: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) \
             or name it with `cgroup:`",
            place.unwrap_or_default()
        )
    })
}

fn cgroup_mount(mounts: &str, within: Option<&Path>) -> Option<PathBuf> {
    let mut found = mounts.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (place, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(place))
    });
    // A directory inside the hierarchy will do: a hook may be attached to any.
    let matches = |mount: &PathBuf| {
        within.is_none_or(|within| mount.starts_with(within) || within.starts_with(mount))
    };
    let mount = found.find(matches)?;
    Some(within.filter(|within| within.starts_with(&mount)).map_or(mount, Path::to_owned))
}

fn report_text(report: &Report) -> String {
    let mut programs =
        Table::new(&["PROGRAM", "ID", "VERIFIED", "INSTRUCTIONS", "ATTACHED TO", "PINNED AT"]);
    for program in &report.programs {
        let pin =
            program.pin.as_ref().map_or_else(|| "-".to_owned(), |pin| pin.display().to_string());
        programs.row(&[
            program.name.to_owned(),
            program.id.to_string(),
            program.verified_instructions.to_string(),
            program.instructions.to_string(),
            program.attach_point.clone(),
            pin,
        ]);
    }
    let mut maps = Table::new(&["MAP", "ENTRIES", "KIB"]);
    let mut total = 0;
    for map in &report.maps {
        total += map.bytes;
        maps.row(&[map.name.to_owned(), map.entries.to_string(), (map.bytes / 1024).to_string()]);
    }
    let mut lines = vec![
        programs.render("no programs"),
        maps.render("no maps"),
        format!("map memory: {} KiB", total / 1024),
    ];
    for fallback in &report.fallbacks {
        lines.push(format!("this kernel lacks {:?}: {}", fallback.feature, fallback.instead));
    }
    if report.fallbacks.is_empty() {
        lines.push("this kernel has everything that is used".to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
cgroup2 /host/sys/fs/cgroup/unified cgroup2 rw 0 0
";

    fn found(mounts: &str, within: Option<&str>) -> Option<String> {
        Some(cgroup_mount(mounts, within.map(Path::new))?.display().to_string())
    }

    #[test]
    fn the_hierarchy_is_found_anywhere_or_where_it_was_said_to_be() {
        for (within, expected) in [
            (None, "/sys/fs/cgroup/unified"),
            (Some("/host/sys/fs/cgroup"), "/host/sys/fs/cgroup/unified"),
            (Some("/host/sys/fs/cgroup/unified"), "/host/sys/fs/cgroup/unified"),
            (Some("/sys/fs/cgroup/unified/pods"), "/sys/fs/cgroup/unified/pods"),
        ] {
            assert_eq!(found(HYBRID, within).as_deref(), Some(expected), "{within:?}");
        }
        assert_eq!(found(HYBRID, Some("/elsewhere")), None);
        assert_eq!(found("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n", None), None);
    }
}
