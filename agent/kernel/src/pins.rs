//! Where an instance's maps and links are pinned, and the directories they are in.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::fs::statfs;

use crate::{Error, Settings, syscall};

/// `BPF_FS_MAGIC`.
const BPFFS_MAGIC: i64 = 0xcafe_4a11;
/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Name of the directory of all instances.
const PRODUCT: &str = "sluice";

/// The pins of one generation of one instance.
#[derive(Clone, Debug)]
pub(crate) struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins of the instance and generation that the settings name.
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            root: instance_directory(&settings.bpffs, &settings.instance)
                .join(settings.generation()),
        }
    }

    /// The pins of every generation of an instance.
    pub(crate) fn generations(bpffs: &Path, instance: &str) -> Result<Vec<Self>, Error> {
        let directory = instance_directory(bpffs, instance);
        Ok(entries(&directory)?
            .into_iter()
            .map(|name| Self { root: directory.join(name) })
            .collect())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.root.join("map").join(name)
    }

    pub(crate) fn hook(&self, program: &str) -> PathBuf {
        self.root.join("hook").join(program)
    }

    pub(crate) fn inbound(&self, cookie: u64) -> PathBuf {
        self.pod(cookie).join("inbound")
    }

    pub(crate) fn guard(&self, cookie: u64, ifindex: u32) -> PathBuf {
        self.pod(cookie).join(format!("guard-{ifindex}"))
    }

    pub(crate) fn probe(&self, cookie: u64, ifindex: u32) -> PathBuf {
        self.pod(cookie).join(format!("probe-{ifindex}"))
    }

    fn pod(&self, cookie: u64) -> PathBuf {
        self.root.join("pod").join(cookie.to_string())
    }

    /// Creates the directories.
    pub(crate) fn create(&self) -> Result<(), Error> {
        for directory in ["map", "hook", "pod"] {
            create_directory(&self.root.join(directory))?;
        }
        Ok(())
    }

    pub(crate) fn create_pod(&self, cookie: u64) -> Result<(), Error> {
        create_directory(&self.pod(cookie))
    }

    pub(crate) fn remove_pod(&self, cookie: u64) -> Result<(), Error> {
        remove_directory(&self.pod(cookie))
    }

    /// Cookies of the pods that have pins.
    pub(crate) fn pods(&self) -> Result<Vec<u64>, Error> {
        let names = entries(&self.root.join("pod"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Interfaces for which the pod has a guard's link.
    pub(crate) fn guards(&self, cookie: u64) -> Result<Vec<u32>, Error> {
        let names = entries(&self.pod(cookie))?;
        Ok(names.iter().filter_map(|name| name.strip_prefix("guard-")?.parse().ok()).collect())
    }

    /// Unpins the maps and removes the directories; the links must be gone. Returns the number of
    /// maps.
    pub(crate) fn remove(&self) -> Result<usize, Error> {
        let maps = self.root.join("map");
        let names = entries(&maps)?;
        for name in &names {
            let path = maps.join(name);
            fs::remove_file(&path).map_err(Error::path("unpin", path))?;
        }
        for directory in ["map", "hook", "pod"] {
            remove_directory(&self.root.join(directory))?;
        }
        remove_directory(&self.root)?;
        Ok(names.len())
    }
}

fn instance_directory(bpffs: &Path, instance: &str) -> PathBuf {
    bpffs.join(PRODUCT).join(instance)
}

/// Removes an instance's directory, and the directory of all instances if that was the last one.
pub(crate) fn remove_instance(bpffs: &Path, instance: &str) -> Result<(), Error> {
    remove_directory(&instance_directory(bpffs, instance))?;
    match fs::remove_dir(bpffs.join(PRODUCT)) {
        // Other instances are still there.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => ignore_absent(result).map_err(Error::path("remove", bpffs.join(PRODUCT))),
    }
}

/// Detaches and unpins the link at `path`. Returns whether there was one.
pub(crate) fn remove_link(path: &Path) -> Result<bool, Error> {
    use std::os::fd::AsFd;
    let Some(link) = syscall::open_pin(path).map_err(Error::path("open the pin", path))? else {
        return Ok(false);
    };
    if let Err(error) = syscall::link::detach(link.as_fd()) {
        // The link's target is gone, and the attachment with it.
        tracing::debug!(path = %path.display(), %error, "link was detached already");
    }
    ignore_absent(fs::remove_file(path)).map_err(Error::path("unpin", path))?;
    Ok(true)
}

/// Mounts a BPF filesystem at `path`, unless there is one.
pub(crate) fn mount_bpffs(path: &Path) -> Result<(), Error> {
    create_directory(path)?;
    if filesystem(path)? == BPFFS_MAGIC {
        return Ok(());
    }
    let target = std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_nul| Error::path("mount", path)(io::Error::from(io::ErrorKind::InvalidInput)))?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let options = c"mode=0700".as_ptr().cast();
    // SAFETY: four strings that end in NUL and outlive the call, three of them literals.
    let result =
        unsafe { libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), flags, options) };
    if result == 0 {
        tracing::info!(path = %path.display(), "mounted a BPF filesystem");
        Ok(())
    } else {
        Err(Error::path("mount a BPF filesystem at", path)(io::Error::last_os_error()))
    }
}

/// Whether there is a BPF filesystem at `path`.
pub(crate) fn is_bpffs(path: &Path) -> bool {
    filesystem(path).is_ok_and(|magic| magic == BPFFS_MAGIC)
}

/// Opens the cgroup to attach to.
pub(crate) fn open_cgroup(path: &Path) -> Result<fs::File, Error> {
    let cgroup = fs::File::open(path).map_err(Error::path("open cgroup", path))?;
    if filesystem(path)? == CGROUP2_MAGIC {
        Ok(cgroup)
    } else {
        Err(Error::NotCgroup2(path.to_owned()))
    }
}

fn filesystem(path: &Path) -> Result<i64, Error> {
    statfs(path).map(|stat| stat.f_type).map_err(|error| Error::path("inspect", path)(error.into()))
}

fn create_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(Error::path("create", path))
}

fn remove_directory(path: &Path) -> Result<(), Error> {
    ignore_absent(fs::remove_dir(path)).map_err(Error::path("remove", path))
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Returns the names in a directory; none if it does not exist. Ours are all plain text.
fn entries(directory: &Path) -> Result<Vec<String>, Error> {
    let found = match fs::read_dir(directory) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::path("list", directory)(error)),
    };
    let mut names = Vec::new();
    for entry in found {
        let entry = entry.map_err(Error::path("list", directory))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    Ok(names)
}
