//! Facts about the node: its kernel, the hooks as the kernel has them, its clock.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use sluice_kernel::Datapath;

use crate::view::model::NodeFacts;

/// Where the running kernel describes its types.
const BTF: &str = "/sys/kernel/btf/vmlinux";
const RELEASE: &str = "/proc/sys/kernel/osrelease";

pub(super) fn of(node: &str, cgroup: &Path, datapath: &Datapath) -> NodeFacts {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now_ms = since.unwrap_or(Duration::ZERO).as_millis();
    let (hooks, kernel_lacks) = match datapath.report() {
        Ok(report) => (
            report
                .programs
                .iter()
                .map(|one| format!("{} ({})", one.name, one.attach_point))
                .collect(),
            report
                .fallbacks
                .iter()
                .map(|one| format!("{:?}: {}", one.feature, one.instead))
                .collect(),
        ),
        Err(error) => (Vec::new(), vec![format!("the programs cannot be listed: {error}")]),
    };
    let hooks_missing = match datapath.missing_hooks() {
        Ok(missing) => missing.into_iter().map(str::to_owned).collect(),
        Err(error) => vec![format!("unknown: {error}")],
    };
    let kernel = fs::read_to_string(RELEASE).map(|text| text.trim().to_owned());
    NodeFacts {
        node: node.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now_ms: u64::try_from(now_ms).unwrap_or(u64::MAX),
        kernel: kernel.unwrap_or_else(|error| format!("unknown ({error})")),
        btf: Path::new(BTF).exists(),
        cgroup: cgroup.display().to_string(),
        hooks,
        hooks_missing,
        kernel_lacks,
    }
}
