//! Kernels other than this machine's, to test on: Debian's newest of a series, or one by its path.
//!
//! Kernels differ in what the verifier accepts and in which hooks there are, so "5.15 or newer" is only as true as the
//! kernels that somebody has booted. They run in qemu with this machine's files as their own (`guest`). Without
//! virtualization they are emulated, which is far slower but just as correct.

mod debian;
mod guest;
mod start;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

pub(crate) use guest::Guest;

/// A kernel that can be booted.
pub(crate) struct Kernel {
    /// What `uname -r` will say, as far as the file's name tells.
    release: String,
    /// The bootable image.
    image: PathBuf,
    /// The directory that holds `lib/modules/<release>`; `None` when everything is built in.
    modules: Option<PathBuf>,
}

impl Kernel {
    /// Finds a kernel by a series such as `6.1`, for which Debian's newest is fetched once, or by a path such as
    /// `/boot/vmlinuz-6.6.0`, whose modules are expected where packages put them, in `/lib/modules/6.6.0`.
    pub(crate) fn named(name: &str) -> Result<Self> {
        if name.contains('/') { Self::at(Path::new(name)) } else { debian::kernel(name) }
    }

    fn at(image: &Path) -> Result<Self> {
        let image = fs::canonicalize(image)
            .with_context(|| format!("there is no kernel at {}", image.display()))?;
        let name = image.file_name().unwrap_or_default().to_string_lossy();
        let release = name.strip_prefix("vmlinuz-").unwrap_or(&name).to_owned();
        let root = image.parent().and_then(Path::parent).map(Path::to_owned);
        // The index that depmod writes; without it, modprobe finds no module there.
        let index = Path::new("lib/modules").join(&release).join("modules.dep");
        let modules = root.filter(|root| root.join(index).is_file());
        Ok(Self { release, image, modules })
    }

    pub(crate) fn release(&self) -> &str {
        &self.release
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_by_its_path_finds_the_modules_that_were_packed_with_it() {
        let root = tempfile::tempdir().unwrap();
        let image = root.path().join("boot/vmlinuz-6.6.1-test");
        fs::create_dir_all(root.path().join("boot")).unwrap();
        fs::write(&image, b"").unwrap();
        let alone = Kernel::named(&image.display().to_string()).unwrap();
        assert_eq!((alone.release(), &alone.modules), ("6.6.1-test", &None));
        let modules = root.path().join("lib/modules/6.6.1-test");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("modules.dep"), b"").unwrap();
        let packed = Kernel::named(&image.display().to_string()).unwrap();
        assert_eq!(packed.modules, Some(fs::canonicalize(root.path()).unwrap()));
    }

    #[test]
    fn a_kernel_that_is_not_there_is_named() {
        let error = Kernel::named("/boot/vmlinuz-none").err().unwrap();
        assert!(error.to_string().contains("/boot/vmlinuz-none"), "{error}");
    }
}
