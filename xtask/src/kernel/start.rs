//! The archive that a guest boots from: its first program, busybox, and the modules that its root file system needs.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::Kernel;
use crate::{image::elf, process};

/// The guest's first program.
const INIT: &str = include_str!("init.sh");
/// The modules that the root file system needs; the guest loads all others from that file system itself.
const NEEDED: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// Writes the archive as `start.cpio` into a directory, and returns its path.
pub(super) fn pack(kernel: &Kernel, directory: &Path) -> Result<PathBuf> {
    let tree = directory.join("start");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("cannot clear {}", tree.display()))?;
    }
    let (bin, modules) = (tree.join("bin"), tree.join("modules"));
    for directory in [&bin, &modules] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    let busybox = process::find("busybox").context("busybox is missing")?;
    ensure!(
        elf::is_static(&busybox),
        "{} needs libraries, which a guest does not have at first: install what Debian calls busybox-static",
        busybox.display()
    );
    copy(&busybox, &bin.join("busybox"))?;
    let mut packed = vec!["init".to_owned(), "bin".to_owned(), "bin/busybox".to_owned()];
    packed.extend(["modules".to_owned(), "modules/order".to_owned()]);
    let mut order = String::new();
    for module in needed_modules(kernel)? {
        let name = unpack(&module, &modules)?;
        packed.push(format!("modules/{name}"));
        order.push_str(&name);
        order.push('\n');
    }
    write(&modules.join("order"), &order)?;
    write(&tree.join("init"), INIT)?;
    process::output(process::command("chmod").arg("755").arg(tree.join("init")))?;
    let archive = directory.join("start.cpio");
    collect(&tree, &packed.join("\n"), &archive)?;
    Ok(archive)
}

/// Returns the files of the [`NEEDED`] modules, each after its dependencies. Modules that are built in have no file.
fn needed_modules(kernel: &Kernel) -> Result<Vec<PathBuf>> {
    let Some(root) = &kernel.modules else { return Ok(Vec::new()) };
    let mut files = Vec::new();
    for module in NEEDED {
        let mut modprobe = process::command("modprobe");
        modprobe.arg("-d").arg(root).args(["-S", &kernel.release, "--show-depends", module]);
        let told = process::output(&mut modprobe)?;
        for file in told.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let file = PathBuf::from(file.trim());
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// Unpacks a module into a directory, in the form that insmod takes, and returns its name there.
fn unpack(module: &Path, into: &Path) -> Result<String> {
    let name = module.file_name().unwrap_or_default().to_string_lossy();
    match name.split_once(".ko") {
        Some((_, "")) => copy(module, &into.join(&*name)).map(|()| name.into_owned()),
        Some((stem, ".xz")) => {
            let name = format!("{stem}.ko");
            let path = into.join(&name);
            let unpacked =
                File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
            process::exec(process::command("xz").arg("-dc").arg(module).stdout(unpacked))?;
            Ok(name)
        }
        _ => bail!("{} is packed in a way that is not known here", module.display()),
    }
}

/// Packs the named files into an archive, in the format that kernels unpack.
fn collect(tree: &Path, names: &str, to: &Path) -> Result<()> {
    let file = File::create(to).with_context(|| format!("cannot make {}", to.display()))?;
    let mut cpio = process::command("cpio");
    cpio.args(["--quiet", "-o", "-H", "newc"]).current_dir(tree);
    let mut child = cpio.stdin(Stdio::piped()).stdout(file).spawn().context("cannot start cpio")?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(names.as_bytes()).context("cannot tell cpio what to pack")?;
    }
    let status = child.wait().context("cannot await cpio")?;
    ensure!(status.success(), "cpio did not pack {}: {status}", tree.display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("cannot copy {}", from.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_module_is_taken_as_it_is_and_what_cannot_be_unpacked_is_named() {
        let root = tempfile::tempdir().unwrap();
        let into = root.path().join("into");
        fs::create_dir(&into).unwrap();
        let plain = root.path().join("veth.ko");
        fs::write(&plain, b"module").unwrap();
        assert_eq!(unpack(&plain, &into).unwrap(), "veth.ko");
        assert_eq!(fs::read(into.join("veth.ko")).unwrap(), b"module");
        let error = unpack(&root.path().join("veth.ko.zst"), &into).unwrap_err();
        assert!(error.to_string().contains("veth.ko.zst"), "{error}");
    }
}
