//! Finds a pod's network namespace by its processes: the kubelet names their cgroup after the pod's UID, which is not
//! the API server's if the pod is a static one.
//!
//! The UID in a cgroup's name alone is not trusted: a namespace counts as the pod's only if it has all
//! of the pod's addresses and is not the node's own. Only the first component of a cgroup path that
//! names a pod counts, because the pod itself may have made what lies below it.
//!
//! Nor are addresses: a process of a pod can make a namespace (`unshare -Urn`) and give it the pod's. What it cannot
//! give it is a veth pair to the node, so a namespace with one comes first. Once a pod's namespace is known, only that
//! one fits as long as a process is in it, and after that only one with such a pair.
//!
//! Every process is looked at through a descriptor of its directory, which names that process for good:
//! when it exits and its number goes to another one, reading through the descriptor fails.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::Read,
    net::IpAddr,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags, fstat, open, openat},
    io::Errno,
};

use crate::{Error, Netns, NetnsId, Result, addresses, veth};

/// More than any cgroup file holds: twelve hierarchies with paths of 4,096 bytes.
const MAX_CGROUP_BYTES: u64 = 64 << 10;

/// A pod whose namespace is sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sought<'a> {
    /// What it is found by, and a UID that may name its cgroup.
    pub uid: &'a str,
    /// Another UID that may. Whoever makes a pod can have it claim anybody's: it takes nothing from the other pod.
    pub static_uid: Option<&'a str>,
    /// What its namespace must have; without an address nothing is found.
    pub addresses: &'a [IpAddr],
    /// Its namespace, if found before, which is accepted whatever addresses it has now. Otherwise a pod
    /// that may change its own addresses would seem to have gone.
    pub known: Option<NetnsId>,
}

/// How well a namespace fits a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// No other can fit better.
    Surely,
    /// Unless another one fits surely.
    Perhaps,
    Never,
}

/// The namespaces of the pods in `sought` that have a process and the right addresses, by UID. One pass
/// over `proc`, the node's process list (`/proc`, or where it is mounted for an agent in a container). The calling
/// thread must be in the node's namespace, where the other ends of the pods' veth pairs are.
///
/// # Errors
///
/// If the list cannot be read, or if nothing was found and the agent lacks permission to examine a process of a
/// pod in `sought`. A process that cannot be examined for another reason is passed over: it may have ended.
pub fn find<'a>(proc: &Path, sought: &[Sought<'a>]) -> Result<HashMap<&'a str, Netns>> {
    let unreadable = |source| Error::Processes { path: proc.to_owned(), source };
    let mut search = Search::new(sought);
    if search.open.is_empty() {
        return Ok(search.found);
    }
    for entry in fs::read_dir(proc).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        if name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit())) {
            search.examine(&proc.join(name))?;
            if search.open.is_empty() {
                break;
            }
        }
    }
    let Search { found, mut perhaps, denied, .. } = search;
    perhaps.extend(found);
    match denied {
        Some(errno) if perhaps.is_empty() => Err(Error::PodProcesses(errno.into())),
        _ => Ok(perhaps),
    }
}

struct Search<'a> {
    /// Pods still without a namespace.
    open: HashMap<&'a str, Sought<'a>>,
    /// The pods that a cgroup with this UID may be of.
    by_cgroup: HashMap<&'a str, Vec<&'a str>>,
    found: HashMap<&'a str, Netns>,
    /// Namespaces that are taken when nothing better is found.
    perhaps: HashMap<&'a str, Netns>,
    /// Namespaces that have been judged: most processes of a pod share one.
    judged: HashSet<(&'a str, NetnsId)>,
    /// Why a process of a pod could not be looked into, if that was for want of a permission.
    denied: Option<Errno>,
}

impl<'a> Search<'a> {
    fn new(sought: &[Sought<'a>]) -> Self {
        let usable = sought.iter().filter(|pod| !pod.addresses.is_empty() || pod.known.is_some());
        let open: HashMap<_, _> = usable.map(|pod| (pod.uid, *pod)).collect();
        let mut by_cgroup: HashMap<_, Vec<_>> = HashMap::new();
        for pod in open.values() {
            for named in [Some(pod.uid), pod.static_uid].into_iter().flatten() {
                by_cgroup.entry(named).or_default().push(pod.uid);
            }
        }
        Self {
            open,
            by_cgroup,
            found: HashMap::new(),
            perhaps: HashMap::new(),
            judged: HashSet::new(),
            denied: None,
        }
    }

    /// Examines one process. Fails only for reasons that concern the agent itself.
    fn examine(&mut self, directory: &Path) -> Result<()> {
        let Some(process) = Process::open(directory) else { return Ok(()) };
        let Some(cgroups) = process.cgroups() else { return Ok(()) };
        let mut pods = self.pods_of(&cgroups);
        if pods.is_empty() {
            return Ok(());
        }
        let (file, id) = match process.netns_file() {
            Ok(found) => found,
            Err(errno) => {
                let is_denied = matches!(errno, Errno::ACCESS | Errno::PERM);
                self.denied = self.denied.or(is_denied.then_some(errno));
                return Ok(());
            }
        };
        pods.retain(|pod| self.judged.insert((pod.uid, id)));
        if pods.is_empty() {
            return Ok(());
        }
        let netns = Netns::from_file(file, &process.netns_path())?;
        if netns.is_own()? {
            return Ok(());
        }
        for pod in pods {
            match pod.fit(&netns) {
                Fit::Surely => {
                    self.open.remove(pod.uid);
                    self.found.insert(pod.uid, netns.clone());
                }
                Fit::Perhaps => {
                    self.perhaps.entry(pod.uid).or_insert_with(|| netns.clone());
                }
                Fit::Never => {}
            }
        }
        Ok(())
    }

    /// The pods still without a namespace that a process in these cgroups may be of: almost always one or none.
    fn pods_of(&self, cgroups: &str) -> Vec<Sought<'a>> {
        let Some(named) = pod_uid(cgroups) else { return Vec::new() };
        let uids = self.by_cgroup.get(named.as_str()).into_iter().flatten();
        uids.filter_map(|uid| self.open.get(uid).copied()).collect()
    }
}

// === impl Sought ===

impl Sought<'_> {
    fn fit(&self, netns: &Netns) -> Fit {
        if self.known == Some(netns.id()) {
            return Fit::Surely;
        }
        if !has_all(netns, self.addresses) {
            return Fit::Never;
        }
        // One whose links cannot be listed is not known to have a pair.
        let is_tied = veth::is_tied_here(netns).unwrap_or(false);
        match self.known {
            None if is_tied => Fit::Surely,
            // Its links are for whoever enrols it to complain about.
            None => Fit::Perhaps,
            // The pod may have a new sandbox; but the known one counts as long as a process is in it.
            Some(_) if is_tied => Fit::Perhaps,
            Some(_) => Fit::Never,
        }
    }
}

fn has_all(netns: &Netns, wanted: &[IpAddr]) -> bool {
    // A namespace whose addresses cannot be listed is not known to be the pod's.
    addresses(netns).is_ok_and(|found| {
        !wanted.is_empty() && wanted.iter().all(|address| found.contains(address))
    })
}

/// One process, held by a descriptor of its directory.
struct Process<'a> {
    directory: &'a Path,
    handle: rustix::fd::OwnedFd,
}

impl<'a> Process<'a> {
    fn open(directory: &'a Path) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = open(directory, flags, Mode::empty()).ok()?;
        Some(Self { directory, handle })
    }

    fn cgroups(&self) -> Option<String> {
        let mut text = String::new();
        let file = self.file("cgroup").ok()?;
        file.take(MAX_CGROUP_BYTES).read_to_string(&mut text).ok()?;
        Some(text)
    }

    fn netns_file(&self) -> Result<(File, NetnsId), Errno> {
        let file = self.file("ns/net")?;
        let status = fstat(&file)?;
        Ok((file, NetnsId { device: status.st_dev, inode: status.st_ino }))
    }

    fn netns_path(&self) -> PathBuf {
        self.directory.join("ns/net")
    }

    fn file(&self, name: &str) -> Result<File, Errno> {
        openat(&self.handle, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(File::from)
    }
}

/// Whether any line of `/proc/<pid>/cgroup` puts a process below the pods' cgroup.
pub(crate) fn is_in_pod(cgroups: &str) -> bool {
    let below = |line: &str| line.split('/').any(|component| component.starts_with("kubepods"));
    pod_uid(cgroups).is_some() || cgroups.lines().any(below)
}

/// Returns the UID of the pod that any line of `/proc/<pid>/cgroup` names (cgroups(7):
/// `id:controllers:path`). On a hybrid node some hierarchies may not know of pods; those that do agree.
fn pod_uid(cgroups: &str) -> Option<String> {
    let mut paths = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.find_map(|path| path.split('/').find_map(uid_of_component))
}

/// Reads `pod<uid>` as the kubelet's cgroupfs driver writes it, or `kubepods-<class>-pod<uid>.slice` as
/// its systemd driver does. The latter has `_` for each `-` of the UID, because systemd reads `-` as a
/// level.
fn uid_of_component(component: &str) -> Option<String> {
    if let Some(slice) = component.strip_suffix(".slice") {
        let (_, uid) = slice.rsplit_once("-pod")?;
        return is_uid(uid).then(|| uid.replace('_', "-"));
    }
    component.strip_prefix("pod").filter(|uid| is_uid(uid)).map(str::to_owned)
}

/// Whether this is a UUID, or the 32 hexadecimal digits that name a static pod.
fn is_uid(text: &str) -> bool {
    (32..=36).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-' || byte == b'_')
}

#[cfg(test)]
mod tests;
