//! `cargo xtask image`: OCI images of this tree's programs, without Docker.
//!
//! The programs are linked statically (`.cargo/config.toml`), so an image holds them and nothing else: no shell, no
//! libraries.

pub(crate) mod elf;
mod layout;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::layout::Image;
use crate::{
    apt, build, cluster, process,
    workspace::{self, Profile},
};

/// Write OCI images of the agent with its plugin, and of the tests' programs, to `target/image`.
#[derive(Args)]
pub(crate) struct Options {
    /// How the programs are compiled.
    #[arg(long, value_enum, default_value_t = Profile::Release)]
    profile: Profile,
}

/// The busybox applets that test pods have.
const APPLETS: [&str; 25] = [
    "sh", "cat", "cp", "date", "echo", "env", "false", "grep", "head", "httpd", "id", "ip", "kill",
    "ls", "mkdir", "nc", "netstat", "nslookup", "ps", "seq", "sleep", "test", "timeout", "true",
    "wget",
];

pub(crate) fn run(options: &Options) -> Result<()> {
    for image in build(options.profile)? {
        let size = fs::metadata(&image).map(|meta| meta.len()).unwrap_or_default();
        println!("{} ({} MB)", image.display(), size / 1_000_000);
    }
    println!("names: {}, {}", sluice_name(), lab_name());
    println!(
        "import one with `ctr --namespace k8s.io images import FILE`, or `docker load --input FILE`"
    );
    Ok(())
}

/// Returns the path of the `sluice` that is also in the image, for the operator of a cluster.
pub(crate) fn operators_program(profile: Profile) -> PathBuf {
    workspace::binary("sluice", profile)
}

/// Returns the name of the image of the agent and its plugin, tagged with this tree's version.
pub(crate) fn sluice_name() -> String {
    format!("sluice.dev/sluice:{}", env!("CARGO_PKG_VERSION"))
}

/// Returns the name of the image of test pods: busybox and `sluice-lab`.
pub(crate) fn lab_name() -> String {
    format!("sluice.dev/lab:{}", env!("CARGO_PKG_VERSION"))
}

pub(crate) fn coredns_name() -> String {
    format!("sluice.dev/coredns:{}", cluster::COREDNS)
}

/// Compiles the programs and writes both images. Returns the images' files.
pub(crate) fn build(profile: Profile) -> Result<Vec<PathBuf>> {
    let busybox = busybox()?;
    build::all(profile)?;
    let directory = workspace::target_dir().join("image");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let sluice = Root::make(&directory.join("sluice"))?;
    for program in ["sluice", "sluice-cni"] {
        sluice.add_own(program, profile)?;
    }
    sluice.write("etc/nsswitch.conf", "hosts: files dns\n")?;
    let lab = Root::make(&directory.join("lab"))?;
    lab.add_own("sluice-lab", profile)?;
    lab.add_busybox(&busybox)?;
    lab.write("etc/nsswitch.conf", "hosts: files dns\n")?;
    lab.write("etc/passwd", "root:x:0:0:root:/:/bin/sh\n")?;
    let images = [
        (sluice, sluice_name(), "sluice", vec!["/usr/local/bin/sluice"], vec![]),
        (lab, lab_name(), "lab", vec![], vec!["/bin/sh"]),
    ];
    images
        .into_iter()
        .map(|(root, name, file, entrypoint, command)| {
            let file = directory.join(format!("{file}.tar"));
            Image { name, root: &root.0, entrypoint: &entrypoint, command: &command }
                .write(&file)?;
            Ok(file)
        })
        .collect()
}

/// Writes the images that a cluster needs before any pod of ours: the process that holds a pod's namespaces, and the
/// DNS server. Returns their files.
pub(crate) fn for_cluster(directory: &Path, coredns: &Path) -> Result<Vec<PathBuf>> {
    let directory = directory.join("images");
    let pause = Root::make(&directory.join("pause"))?;
    pause.add_busybox(&busybox()?)?;
    let server = Root::make(&directory.join("coredns"))?;
    server.add(coredns, "coredns")?;
    let files = ["pause.tar", "coredns.tar"].map(|file| directory.join(file));
    let [pause_file, server_file] = &files;
    let hold = ["/bin/sleep", "infinity"];
    Image {
        name: "sluice.dev/pause:1".to_owned(),
        root: &pause.0,
        entrypoint: &hold,
        command: &[],
    }
    .write(pause_file)?;
    Image { name: coredns_name(), root: &server.0, entrypoint: &["/coredns"], command: &[] }
        .write(server_file)?;
    Ok(files.to_vec())
}

/// A directory that becomes the file system of an image.
struct Root(PathBuf);

// === impl Root ===

impl Root {
    /// Makes an empty root, in place of what an earlier run left.
    fn make(path: &Path) -> Result<Self> {
        if path.exists() {
            fs::remove_dir_all(path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path.to_owned()))
    }

    fn place(&self, inside: &str) -> Result<PathBuf> {
        let path = self.0.join(inside);
        let parent = path.parent().unwrap_or(&self.0);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        Ok(path)
    }

    fn add(&self, from: &Path, inside: &str) -> Result<()> {
        let to = self.place(inside)?;
        fs::copy(from, &to)
            .map(drop)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    }

    /// Adds a program of this tree without its debug information.
    fn add_own(&self, program: &str, profile: Profile) -> Result<()> {
        let built = workspace::binary(program, profile);
        ensure!(
            elf::is_static(&built),
            "{} needs shared libraries: unset RUSTFLAGS, which takes the place of the flags in .cargo/config.toml",
            built.display()
        );
        let to = self.place(&format!("usr/local/bin/{program}"))?;
        process::exec(process::command("strip").arg("--strip-debug").arg("-o").arg(&to).arg(&built))
    }

    fn write(&self, inside: &str, text: &str) -> Result<()> {
        let path = self.place(inside)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn add_busybox(&self, busybox: &Path) -> Result<()> {
        self.add(busybox, "bin/busybox")?;
        for applet in APPLETS {
            let link = self.place(&format!("bin/{applet}"))?;
            symlink("busybox", &link).with_context(|| format!("cannot make {}", link.display()))?;
        }
        for directory in ["tmp", "www"] {
            let path = self.0.join(directory);
            fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        Ok(())
    }
}

/// Returns the path of a busybox that needs no library; installs one if there is none.
fn busybox() -> Result<PathBuf> {
    let fitting = || process::find("busybox").filter(|path| elf::is_static(path));
    if let Some(found) = fitting() {
        return Ok(found);
    }
    apt::install(&["busybox-static"], "test pods need a shell that runs without libraries")?;
    fitting().context("busybox is linked with libraries: install busybox-static")
}
