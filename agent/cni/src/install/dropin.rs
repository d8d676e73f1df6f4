//! The entry in a file of its own, beside the list: `<network>/sluice-cni.conf`, which libcni appends to the list from
//! 1.3 on. No file of others is touched. A list does not say whether its runtime reads drop-ins, so only runtimes that
//! are known to read them get one.
//!
//! Runtimes watch the directory of lists but not those below it. The draft therefore lies in the watched one: runtimes
//! notice its renaming, and by then the entry is in place.

use std::{fs, io, path::Path};

use super::{
    InstallError, Installed,
    directory::{Directory, Source, check_version},
    draft::{self, Ownership, failed},
    list::List,
};
use crate::plugin::is_network_name;

const FILE: &str = "sluice-cni.conf";
/// The first release of each runtime with libcni 1.3.
const RUNTIMES: [(&str, [u32; 2]); 2] = [("containerd://", [2, 1]), ("cri-o://", [1, 34])];

/// Returns whether the runtime (`containerRuntimeVersion` of the node's status) reads drop-ins and the list allows
/// them.
pub(super) fn is_usable(runtime: &str, source: &Source) -> bool {
    let Source::List(file) = source else { return false };
    reads_dropins(runtime)
        && List::parse(&file.text)
            .is_ok_and(|list| !list.inlined_only && is_network_name(&list.name))
}

fn reads_dropins(runtime: &str) -> bool {
    RUNTIMES.iter().any(|(name, least)| {
        let Some(version) = runtime.strip_prefix(name) else { return false };
        let mut parts = version.trim_start_matches('v').split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => [major, minor] >= *least,
            _ => false,
        }
    })
}

pub(super) fn enter(
    directory: &Directory,
    source: &Source,
    entry: &str,
) -> Result<Installed, InstallError> {
    let (Source::List(file) | Source::Single(file)) = source;
    let Ok(list) = List::parse(&file.text) else { return Ok(Installed::Waiting) };
    check_version(&file.path, &list.version)?;
    let below = directory.path().join(&list.name);
    let target = below.join(FILE);
    let text = format!("{entry}\n");
    let changed = !fs::read_to_string(&target).is_ok_and(|present| present == text);
    if changed {
        fs::create_dir_all(&below).map_err(failed("create", &below))?;
        let ownership = Ownership::of(&file.path)?;
        draft::replace(directory.path(), &target, text.as_bytes(), ownership)?;
    }
    let main = list.main_plugin().unwrap_or_default();
    Ok(Installed::InPlace { file: target, changed, main })
}

/// Returns whether our drop-in lies beside the list.
pub(super) fn is_entered(directory: &Directory, list: &List<'_>) -> bool {
    is_network_name(&list.name) && directory.path().join(&list.name).join(FILE).is_file()
}

/// Removes our drop-ins of all networks, except `kept`.
pub(super) fn leave_all_but(
    directory: &Directory,
    kept: Option<&Path>,
) -> Result<(), InstallError> {
    let entries = match fs::read_dir(directory.path()) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", directory.path())(error)),
    };
    for entry in entries.flatten() {
        let file = entry.path().join(FILE);
        if Some(file.as_path()) == kept || !file.is_file() {
            continue;
        }
        // Moved first into the directory that runtimes watch, for them to notice.
        let leaving = directory.path().join(format!(".sluice-cni.{}.draft", std::process::id()));
        draft::rename(&file, &leaving)?;
        draft::remove(&leaving)?;
        // The directory stays if others have drop-ins there too.
        drop(fs::remove_dir(entry.path()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_runtimes_that_are_known_to_read_dropins_get_one() {
        for known in [
            "containerd://2.1.0",
            "containerd://v2.4.2-rc.1",
            "cri-o://1.34.0",
            "containerd://3.0.0",
        ] {
            assert!(reads_dropins(known), "{known}");
        }
        for other in
            ["containerd://2.0.5", "containerd://1.7.28", "cri-o://1.33.4", "", "docker://28.1"]
        {
            assert!(!reads_dropins(other), "{other}");
        }
    }
}
