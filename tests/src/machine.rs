//! What a run could leave behind on the machine, read before and after: they must be the same.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    os::fd::AsFd as _,
    path::Path,
    process::Command,
};

use anyhow::Result;

use crate::{
    Netns, Process,
    cleanup::RECORDS,
    privilege::{cgroup_root, find_program},
    syscalls::{Hook, Target, attached_programs},
};

/// The traces that a run could leave, each as text that can be compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(BTreeMap<&'static str, String>);

impl Traces {
    /// Reads the machine: the namespace of the caller, and what is global.
    pub fn of_machine() -> Result<Self> {
        let mut traces = rules(|command| Ok(command.output()?))?;
        traces.insert("network namespaces", names_in("/run/netns"));
        traces.insert("network devices", names_in("/sys/class/net"));
        traces.insert("pins in /sys/fs/bpf", names_in("/sys/fs/bpf"));
        traces.insert("worlds of the lab", names_in(RECORDS));
        traces.insert("mounts", not_others(fs::read_to_string("/proc/mounts")?.lines()));
        traces.insert("programs at the cgroup", programs()?);
        Ok(Self(traces))
    }

    /// Reads the packet filters and routing rules of one namespace.
    pub fn of_rules(netns: &Netns) -> Result<Self> {
        Ok(Self(rules(|command| Process::output(netns, command))?))
    }

    /// What differs, for people.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let keys = self.0.keys().chain(after.0.keys());
        let mut changed: Vec<_> =
            keys.filter(|key| self.0.get(*key) != after.0.get(*key)).copied().collect();
        changed.dedup();
        changed.sort_unstable();
        changed.dedup();
        let text = |traces: &Self, key| traces.0.get(key).cloned().unwrap_or_default();
        changed
            .into_iter()
            .map(|key| format!("{key}: {:?} became {:?}", text(self, key), text(after, key)))
            .collect()
    }

    /// How many lines of packet filters and of rules beyond the kernel's own three there are.
    pub fn rule_lines(&self) -> usize {
        let standing = ["from all lookup local", "from all lookup main", "from all lookup default"];
        self.0
            .iter()
            .filter(|(name, _)| FILTERS.iter().any(|(filter, ..)| filter == *name))
            .flat_map(|(_, text)| text.lines())
            .filter(|line| !standing.iter().any(|standing| line.ends_with(standing)))
            .filter(|line| !line.starts_with('#') && !line.trim().is_empty())
            .count()
    }
}

/// Where packet filters and policy routing would show. Reading must not create what it reads, which
/// the `-save` tools heed: they list only tables that exist.
const FILTERS: [(&str, &str, &[&str]); 6] = [
    ("iptables", "iptables-legacy-save", &[]),
    ("ip6tables", "ip6tables-legacy-save", &[]),
    ("iptables over nftables", "iptables-nft-save", &[]),
    ("nftables", "nft", &["list", "ruleset"]),
    ("ip rule", "ip", &["rule"]),
    ("ip -6 rule", "ip", &["-6", "rule"]),
];

fn rules(
    run: impl Fn(&mut Command) -> Result<std::process::Output>,
) -> Result<BTreeMap<&'static str, String>> {
    let mut traces = BTreeMap::new();
    for (name, program, arguments) in FILTERS {
        // A tool that is not installed has nothing to show; the kernel's own list is read below.
        let Some(program) = find_program(program) else { continue };
        let output = run(Command::new(program).args(arguments))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        traces.insert(name, lines.fold(String::new(), |kept, line| kept + line + "\n"));
    }
    for (name, file) in
        [("tables of iptables", "ip_tables_names"), ("tables of ip6tables", "ip6_tables_names")]
    {
        let path = format!("/proc/thread-self/net/{file}");
        let output = run(Command::new("cat").arg(path))?;
        traces.insert(name, String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Ok(traces)
}

/// Where `cargo xtask cluster` mounts what belongs to clusters, and how their links to this machine are called.
const CLUSTERS: [&str; 3] = ["/run/sluice-cluster", "/var/lib/sluice-cluster", "sluice-k"];
/// The cluster that has to be gone after its demo.
const DEMO: &str = "/sluice-cluster/demo";

/// Ids of the kernel programs at the root of the cgroup hierarchy.
fn programs() -> Result<String> {
    let cgroup = File::open(cgroup_root()?)?;
    let mut text = String::new();
    for hook in Hook::OF_NODE {
        let ids = attached_programs(Target::Fd(cgroup.as_fd()), hook)?;
        writeln!(text, "{hook:?}: {ids:?}")?;
    }
    Ok(text)
}

/// Without the worlds of other runs and the clusters of developers, which come and go as they please.
fn not_others<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    let mine = format!("-{}", std::process::id());
    let is_cluster = |line: &str| {
        let is_place = CLUSTERS.iter().any(|place| line.contains(place));
        is_place && !line.contains(DEMO)
    };
    let kept = lines
        .filter(|line| !line.contains("lab-") || line.contains(&mine))
        .filter(|line| !is_cluster(line));
    kept.collect::<Vec<_>>().join("\n")
}

fn names_in(path: impl AsRef<Path>) -> String {
    let Ok(entries) = fs::read_dir(path) else { return String::new() };
    let mut names: Vec<_> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    not_others(names.iter().map(String::as_str))
}
