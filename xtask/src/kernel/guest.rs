//! A qemu guest with this machine's files: it reads them over 9P and writes to memory, which is gone when it ends.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{Kernel, start};
use crate::{process, tools, workspace};

/// What the guest's first program prints when the script has ended, in front of the script's exit status.
const ENDED: &str = "sluice-guest: ended with ";
/// How long a guest may print nothing before it counts as stuck.
const PATIENCE: Duration = Duration::from_mins(15);
const MEMORY: &str = "4G";
const PROCESSORS: &str = "2";

/// A guest that can be booted with its kernel any number of times.
pub(crate) struct Guest<'a> {
    kernel: &'a Kernel,
    /// The directory of the guest's script and kernel log.
    directory: PathBuf,
    /// The archive that the guest boots from.
    archive: PathBuf,
}

impl<'a> Guest<'a> {
    /// Packs the archive that a guest with this kernel boots from.
    pub(crate) fn new(kernel: &'a Kernel) -> Result<Self> {
        tools::ensure(&tools::KERNEL)?;
        let directory = workspace::target_dir().join("kernel").join(&kernel.release);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let archive = start::pack(kernel, &directory)?;
        Ok(Self { kernel, directory, archive })
    }

    /// Boots the guest and runs a shell script in it as root, with its output on ours. Fails if the script does.
    pub(crate) fn run(&self, script: &str) -> Result<()> {
        let path = self.directory.join("script.sh");
        fs::write(&path, script).with_context(|| format!("cannot write {}", path.display()))?;
        let mut qemu = self.qemu(&path);
        let name = process::shown(&qemu);
        let mut child = qemu
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        let status = listen(&mut child);
        // Has no effect if qemu has ended already.
        _ = child.kill();
        child.wait().with_context(|| format!("cannot await `{name}`"))?;
        match status?.as_deref() {
            Some("0") => Ok(()),
            Some(status) => {
                bail!("it failed on Linux {}: exit status {status}", self.kernel.release)
            }
            None => bail!(
                "Linux {} ended without a word; its log, {}, closes with\n{}",
                self.kernel.release,
                self.log().display(),
                last_lines(&self.log())
            ),
        }
    }

    fn qemu(&self, script: &Path) -> Command {
        let mut words = format!("console=ttyS1 panic=-1 sluice.script={}", script.display());
        if let Some(root) = &self.kernel.modules {
            let modules = root.join("lib/modules").join(&self.kernel.release);
            words = format!("{words} sluice.modules={}", modules.display());
        }
        let mut qemu = process::command("qemu-system-x86_64");
        qemu.args(if is_virtualizable() {
            ["-accel", "kvm", "-cpu", "host"]
        } else {
            ["-accel", "tcg,thread=multi", "-cpu", "max"]
        });
        qemu.args(["-smp", PROCESSORS, "-m", MEMORY, "-nodefaults", "-display", "none"]);
        qemu.args(["-no-reboot", "-serial", "stdio", "-serial"]);
        qemu.arg(format!("file:{}", self.log().display()));
        qemu.args([
            "-fsdev",
            "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        ]);
        qemu.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(&self.archive);
        qemu.args(["-append", &words]);
        qemu
    }

    fn log(&self) -> PathBuf {
        self.directory.join("kernel.log")
    }
}

/// Returns whether the processor can run guests itself. The presence of `/dev/kvm` is not enough: under some
/// hypervisors it runs only guests that know of the hypervisor.
fn is_virtualizable() -> bool {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    (has("vmx") || has("svm")) && File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// Prints what the guest says until it ends. Returns the script's exit status, if the guest reported one.
fn listen(child: &mut Child) -> Result<Option<String>> {
    let output = child.stdout.take().context("qemu has no output")?;
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        for line in lines {
            if said.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    loop {
        match heard.recv_timeout(PATIENCE) {
            Ok(line) => match line.strip_prefix(ENDED) {
                Some(status) => return Ok(Some(status.to_owned())),
                None => println!("{line}"),
            },
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest has said nothing for {} s: it is ended", PATIENCE.as_secs())
            }
        }
    }
}

fn last_lines(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
}
