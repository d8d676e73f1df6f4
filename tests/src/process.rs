//! A real program inside a namespace: started, watched through its log, ended by descriptor.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::{
    Netns,
    cleanup::{self, Guard, Undo},
};

/// How often a log is read.
const POLL: Duration = Duration::from_millis(10);

/// A running program; ended and reaped when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    _guard: Guard,
}

impl Process {
    /// Starts `command` inside `netns`; both its outputs go to `<world>/<name>.log`.
    pub fn start(world: &Path, netns: &Netns, name: &str, mut command: Command) -> Result<Self> {
        let log = world.join(format!("{name}.log"));
        let output = File::options().create(true).append(true).open(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // In a group of its own: a Ctrl-C at the terminal reaches only us, and we end the programs in the right order.
        command.process_group(0);
        let child = netns
            .run(|| command.spawn().with_context(|| format!("start {command:?}")))
            .with_context(|| format!("start {name}"))?;
        let pid = Pid::from_child(&child);
        let guard = Guard::new(Undo::Process(pidfd_open(pid, PidfdFlags::empty())?));
        cleanup::record_process(world, child.id())?;
        Ok(Self { name: name.to_owned(), child, log, _guard: guard })
    }

    /// Runs `command` inside `netns` to its end. The command must limit its own time.
    pub fn output(netns: &Netns, command: &mut Command) -> Result<Output> {
        netns.run(|| {
            command
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("run {}", command.get_program().to_string_lossy()))
        })
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns everything that the program has written.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits for a line of the log that contains `text`, and returns it.
    pub fn wait_for_line(&mut self, text: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let log = self.log();
            if let Some(line) = log.lines().find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended ({status}) before it said {text:?}; its log:\n{log}", self.name);
            }
            if Instant::now() > deadline {
                bail!("{} did not say {text:?} within {patience:?}; its log:\n{log}", self.name);
            }
            thread::sleep(POLL);
        }
    }

    /// Returns whether the program still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Kills the program at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks the program to end (SIGTERM) and waits. Fails if it has not ended within `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        // Not yet reaped, so the pid is still this child's.
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        Err(anyhow!("{} ignored SIGTERM for {patience:?}", self.name))
    }

    /// Returns the resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// Returns the bytes of resident memory that are the process's own. The rest is pages of the program's file, which
    /// the kernel drops and brings back: they show what was needed lately, not how much is kept.
    pub fn own_bytes(&self) -> Result<u64> {
        self.memory("RssAnon:")
    }

    fn memory(&self, kind: &'static str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(kind)).context(kind)?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }

    /// Returns the CPU time used so far, user and system.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("no name in stat")?;
        let ticks: u64 =
            fields.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        // USER_HZ is 100 on every architecture that we run on.
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Returns the number of open descriptors.
    pub fn descriptors(&self) -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", self.id()))?.count())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let asked = self.terminate(Duration::from_secs(3));
            if asked.is_err() {
                self.kill().ok();
            }
        }
    }
}
