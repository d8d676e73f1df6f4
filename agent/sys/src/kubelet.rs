//! Finds the node's kubelet among its processes, and the cgroup v2 that it is in.
//!
//! Any process can take the kubelet's name. The kubelet counts as found only if exactly one process has
//! its name, is in the node's own network namespace (that of the calling thread), and is in no pod's
//! cgroup in any hierarchy. A pod on the host's network is in that namespace too, but always in a pod's
//! cgroup.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use rustix::thread::LinkNameSpaceType;

use crate::{Error, Result, pod_processes};

/// Number of the initial PID namespace's file (`PROC_PID_INIT_INO`), the same on every machine.
const INITIAL_PIDS: u64 = 0xefff_fffc;

/// The node's kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// Its process ID, as in the process list.
    pub process: u32,
    /// When it started, in ticks since boot; distinguishes it from a later process with the same
    /// ID.
    pub started: u64,
    /// Path of its cgroup v2, below the hierarchy's root as the node's first process sees it; `None` if
    /// there is no such hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Whether that cgroup holds nothing but the kubelet and its children.
    pub has_own_cgroup: bool,
    /// Whether the process ID is from the initial PID namespace, which is the one that the kernel
    /// programs see.
    pub is_initial: bool,
}

/// What the process list says about a process.
struct Process {
    id: u32,
    parent: u32,
    started: u64,
    name: String,
    cgroups: String,
}

/// Finds the kubelet by its process name in `proc`, the node's process list. Returns `None` if
/// there is none.
///
/// # Errors
///
/// If the list cannot be read, or several processes could be the kubelet.
pub fn find(proc: &Path, name: &str) -> Result<Option<Kubelet>> {
    let found = in_first_cgroup_namespace(proc, || processes(proc))??;
    let own = fs::metadata("/proc/thread-self/ns/net").ok().map(|own| own.ino());
    let candidates: Vec<&Process> = found
        .iter()
        .filter(|process| process.name == name && !pod_processes::is_in_pod(&process.cgroups))
        .filter(|process| own.is_some() && namespace(proc, process.id, "net") == own)
        .collect();
    let kubelet = match candidates.as_slice() {
        [] => return Ok(None),
        [one] => one,
        [first, second, ..] => {
            return Err(Error::SeveralKubelets { first: first.id, second: second.id });
        }
    };
    let cgroup = unified(&kubelet.cgroups);
    let has_own_cgroup = cgroup.is_some_and(|cgroup| {
        let parents: HashMap<u32, u32> =
            found.iter().map(|process| (process.id, process.parent)).collect();
        let inside = found.iter().filter(|process| unified(&process.cgroups) == Some(cgroup));
        cgroup != "/"
            && inside.into_iter().all(|process| descends(process.id, kubelet.id, &parents))
    });
    Ok(Some(Kubelet {
        process: kubelet.id,
        started: kubelet.started,
        cgroup: cgroup.map(PathBuf::from),
        has_own_cgroup,
        is_initial: namespace(proc, 1, "pid") == Some(INITIAL_PIDS),
    }))
}

/// Whether a kubelet found earlier is still the same process in the same cgroup. Much cheaper than
/// [`find`].
pub fn is_still_there(proc: &Path, kubelet: &Kubelet) -> bool {
    let look = || {
        let process = process(proc, kubelet.process)?;
        let cgroup = unified(&process.cgroups).map(PathBuf::from);
        Some(process.started == kubelet.started && cgroup == kubelet.cgroup)
    };
    in_first_cgroup_namespace(proc, look).ok().flatten() == Some(true)
}

fn processes(proc: &Path) -> Result<Vec<Process>> {
    let unreadable = |source| Error::Processes { path: proc.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
            found.extend(process(proc, id));
        }
    }
    Ok(found)
}

/// Reads what the list says about a process; `None` if it has ended.
fn process(proc: &Path, id: u32) -> Option<Process> {
    let directory = proc.join(id.to_string());
    let status = fs::read_to_string(directory.join("stat")).ok()?;
    let cgroups = fs::read_to_string(directory.join("cgroup")).ok()?;
    let (name, parent, started) = parse_stat(&status)?;
    Some(Process { id, parent, started, name: name.to_owned(), cgroups })
}

/// Reads name, parent and start of a process (`proc_pid_stat(5)`). The name may contain anything, even
/// brackets.
fn parse_stat(text: &str) -> Option<(&str, u32, u64)> {
    let (head, tail) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    let mut fields = tail.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    // Field 22 of the whole line; the parent was field 4.
    let started = fields.nth(17)?.parse().ok()?;
    Some((name, parent, started))
}

/// The cgroup v2 of a process.
fn unified(cgroups: &str) -> Option<&str> {
    cgroups.lines().find_map(|line| line.strip_prefix("0::"))
}

fn descends(mut process: u32, ancestor: u32, parents: &HashMap<u32, u32>) -> bool {
    // A list that changes while it is read may contain a loop. No chain of parents is longer than
    // this.
    for _ in 0..parents.len() {
        if process == ancestor {
            return true;
        }
        match parents.get(&process) {
            Some(parent) => process = *parent,
            None => return false,
        }
    }
    false
}

fn namespace(proc: &Path, process: u32, kind: &str) -> Option<u64> {
    let path = proc.join(process.to_string()).join("ns").join(kind);
    Some(fs::metadata(path).ok()?.ino())
}

/// Runs `task` in the cgroup namespace of the node's first process, because cgroup paths are to be as
/// that process sees them, and an agent in a container has a cgroup namespace of its own. If the first
/// process's cannot be entered, paths are taken as the agent sees them.
fn in_first_cgroup_namespace<T: Send>(proc: &Path, task: impl FnOnce() -> T + Send) -> Result<T> {
    let namespace = File::open(proc.join("1/ns/cgroup")).ok();
    thread::scope(|scope| {
        let inside = move || {
            if let Some(namespace) = &namespace {
                let kind = Some(LinkNameSpaceType::ControlGroup);
                // If this fails, the kubelet's path at worst names a cgroup that does not exist
                // here.
                rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)
                    .unwrap_or_default();
            }
            task()
        };
        let thread = thread::Builder::new().name("cgroups".to_owned());
        thread
            .spawn_scoped(scope, inside)
            .map_err(Error::Thread)?
            .join()
            .map_err(|_panic| Error::Panicked)
    })
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process with a chosen name, which ends with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn start(name: &str) -> Self {
            let script = format!("printf {name} > /proc/$$/comm && echo && read -r _");
            let mut command = Command::new("bash");
            command.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut line = [0; 1];
            std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
            Self(child)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    #[test]
    fn the_kubelet_is_found_by_its_name_and_known_until_it_ends() {
        let proc = Path::new("/proc");
        let name = format!("kl{}", std::process::id());
        assert_eq!(find(proc, &name).unwrap(), None);
        let sleeper = Sleeper::start(&name);
        let found = find(proc, &name).unwrap().unwrap();
        assert_eq!(found.process, sleeper.0.id());
        assert!(is_still_there(proc, &found));
        let later = Kubelet { started: found.started + 1, ..found.clone() };
        assert!(!is_still_there(proc, &later), "another process of the same number");
        let second = Sleeper::start(&name);
        assert!(matches!(find(proc, &name), Err(Error::SeveralKubelets { .. })));
        drop(second);
        drop(sleeper);
        assert!(!is_still_there(proc, &found));
    }

    #[test]
    fn a_process_in_a_pod_is_never_the_kubelet() {
        for cgroups in [
            "0::/kubepods.slice/kubepods-pod0d8a6d3e_1111_2222_3333_444455556666.slice/cri-1.scope",
            "0::/\n4:memory:/kubepods/burstable/pod0d8a6d3e-1111-2222-3333-444455556666/1",
            "0::/kubelet.slice/kubelet-kubepods.slice\n1:name=systemd:/kubepods/besteffort",
        ] {
            assert!(pod_processes::is_in_pod(cgroups), "{cgroups}");
        }
        assert!(!pod_processes::is_in_pod("0::/system.slice/kubelet.service"));
    }

    #[test]
    fn names_may_hold_anything() {
        let text = "12 (a) R (b c) S 7 12 12 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2";
        assert_eq!(parse_stat(text), Some(("a) R (b c", 7, 4711)));
        assert_eq!(parse_stat("12 (cut off"), None);
    }

    #[test]
    fn a_process_descends_from_itself_and_its_ancestors() {
        let parents = HashMap::from([(5, 4), (4, 2), (2, 1), (9, 8), (8, 9)]);
        assert!(descends(5, 2, &parents) && descends(2, 2, &parents));
        assert!(!descends(2, 5, &parents) && !descends(9, 2, &parents), "a loop ends");
    }
}
