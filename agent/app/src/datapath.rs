//! `sluice datapath`: the kernel programs by hand, without an agent.

use std::{fs, path::PathBuf};

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
    let cgroup = match &place.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => find_cgroup()?,
    };
    Ok(Settings { bpffs: place.bpffs.clone(), cgroup, ..Settings::new(place.instance.as_str()) })
}

/// Where this machine has its cgroup v2 hierarchy mounted; also beside a v1 one.
pub(crate) fn find_cgroup() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    let is_v2 = |line: &&str| line.split_whitespace().nth(2) == Some("cgroup2");
    let line = mounts.lines().find(is_v2).context(
        "no cgroup v2 hierarchy is mounted: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or name it with `cgroup:`",
    )?;
    Ok(line.split_whitespace().nth(1).context("reading /proc/mounts")?.into())
}

fn report_text(report: &Report) -> String {
    let mut programs =
        Table::new(&["PROGRAM", "ID", "VERIFIED", "INSTRUCTIONS", "ATTACHED TO", "PINNED AT"]);
    for program in &report.programs {
        let pin =
            program.pin.as_ref().map_or_else(|| "-".to_owned(), |pin| pin.display().to_string());
        programs.row(vec![
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
        maps.row(vec![
            map.name.to_owned(),
            map.entries.to_string(),
            (map.bytes / 1024).to_string(),
        ]);
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
