//! Undoes what the lab makes: on drop, on panic, on a signal and, after a crash, before the next run.
//!
//! Every resource is registered *before* it is made. A [`Guard`] undoes its resource when dropped (also while a panic
//! unwinds). SIGINT, SIGTERM and SIGHUP undo all that is registered, newest first, and end the process. After SIGKILL
//! the records below [`RECORDS`] remain, and [`remove_leftovers`] reads them in the next run.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    mount::{UnmountFlags, unmount},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::signal::unix::{SignalKind, signal};

use crate::netns::DIRECTORY as NAMESPACES;

/// One directory per world: its configuration, sockets, logs and the record of what it made.
pub const RECORDS: &str = "/run/sluice-lab";
/// The file that names the process that owns a world.
const OWNER: &str = "owner";
/// The file that lists the processes that a world started.
const PROCESSES: &str = "processes";
/// How long a process may take to end when asked.
const GRACE: Duration = Duration::from_secs(5);

static REGISTER: Mutex<Register> = Mutex::new(Register { next: 0, entries: Vec::new() });

/// The number of guards that are undoing their resource at this moment and are no longer in the register.
static UNDOING: AtomicUsize = AtomicUsize::new(0);

struct Register {
    next: u64,
    entries: Vec<(u64, Undo)>,
}

/// How to undo one thing.
#[derive(Debug)]
pub enum Undo {
    /// End this process, by its descriptor: the pid may have a new owner.
    Process(OwnedFd),
    /// Unpin every namespace in this directory.
    Namespaces(PathBuf),
    /// Unmount this.
    Mount(PathBuf),
    /// Remove this directory with what is in it.
    Directory(PathBuf),
    /// Remove this control group.
    ControlGroup(PathBuf),
    /// Run this command to its end: its program knows best what to remove.
    Run(Vec<String>),
}

/// Undoes one registered thing when dropped.
#[derive(Debug)]
#[must_use = "the thing is undone as soon as this is dropped"]
pub struct Guard(u64);

// === impl Guard ===

impl Guard {
    /// Registers `undo`; call it before making the thing.
    pub fn new(undo: Undo) -> Self {
        listen_for_signals();
        let mut register = lock();
        let id = register.next;
        register.next += 1;
        register.entries.push((id, undo));
        Self(id)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut register = lock();
        let position = register.entries.iter().position(|(id, _)| *id == self.0);
        let undo = position.map(|position| register.entries.remove(position));
        UNDOING.fetch_add(1, Ordering::SeqCst);
        drop(register);
        if let Some((_, undo)) = undo {
            undo.run();
        }
        UNDOING.fetch_sub(1, Ordering::SeqCst);
    }
}

// === impl Undo ===

impl Undo {
    fn run(&self) {
        // A leftover is reported, not fatal: the other entries still have to be undone.
        if let Err(error) = self.attempt() {
            report(&format!("could not undo {self:?}: {error:#}"));
        }
    }

    fn attempt(&self) -> Result<()> {
        match self {
            Self::Process(process) => end(process),
            Self::Namespaces(directory) => remove_namespaces(directory),
            Self::Mount(path) => Ok(unmount(path, UnmountFlags::DETACH)?),
            Self::Directory(path) => {
                // The last world takes the directory of all worlds with it.
                let outcome = fs::remove_dir_all(path);
                fs::remove_dir(RECORDS).ok();
                match outcome {
                    Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
                    _ => Ok(()),
                }
            }
            Self::ControlGroup(path) => Ok(fs::remove_dir(path)?),
            Self::Run(command) => {
                let [program, arguments @ ..] = command.as_slice() else { return Ok(()) };
                let output = Command::new(program).args(arguments).output().context("start it")?;
                anyhow::ensure!(
                    output.status.success(),
                    "{}: {}",
                    output.status,
                    String::from_utf8_lossy(&output.stderr)
                );
                Ok(())
            }
        }
    }
}

/// Makes the directory of world `id` and records this process as its owner.
pub fn claim(id: &str) -> Result<(PathBuf, Guard)> {
    let directory = Path::new(RECORDS).join(id);
    let guard = Guard::new(Undo::Directory(directory.clone()));
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let me = std::process::id();
    fs::write(directory.join(OWNER), format!("{me} {}\n", start_time(me).unwrap_or_default()))?;
    Ok((directory, guard))
}

/// Appends a process to the record of a world, so that a later run can end it.
pub fn record_process(world: &Path, pid: u32) -> Result<()> {
    let line = format!("{pid} {}\n", start_time(pid).unwrap_or_default());
    let mut record = OpenOptions::new().create(true).append(true).open(world.join(PROCESSES))?;
    Ok(record.write_all(line.as_bytes())?)
}

/// Removes what dead owners left behind: processes (if pid and start time still agree), namespaces,
/// mounts and directories.
pub fn remove_leftovers() -> Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let Ok(worlds) = fs::read_dir(RECORDS) else { return Ok(()) };
    for world in worlds {
        let path = world?.path();
        let owner = fs::read_to_string(path.join(OWNER)).unwrap_or_default();
        // No owner yet: the world's maker is between two system calls. Leave it.
        if owner.is_empty() || owner.lines().any(|line| live(line).is_some()) {
            continue;
        }
        report(&format!("removing what a dead run left in {}", path.display()));
        let processes = fs::read_to_string(path.join(PROCESSES)).unwrap_or_default();
        for process in processes.lines().filter_map(live) {
            Undo::Process(process).run();
        }
        Undo::Namespaces(path.join(NAMESPACES)).run();
        let pins = path.join("bpf");
        if pins.exists() {
            // A failure means that it is not mounted any more, which is as good.
            unmount(&pins, UnmountFlags::DETACH).ok();
        }
        Undo::Directory(path).run();
    }
    Ok(())
}

/// Returns a descriptor of the process in a line `pid start-time`, if it is still that process.
fn live(line: &str) -> Option<OwnedFd> {
    let (pid, started) = line.split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    let descriptor = pidfd_open(Pid::from_raw(pid.try_into().ok()?)?, PidfdFlags::empty()).ok()?;
    (start_time(pid)? == started && !started.is_empty()).then_some(descriptor)
}

/// Returns field 22 of `/proc/PID/stat`: with the pid it names one process for ever.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(19).map(str::to_owned)
}

fn end(process: &OwnedFd) -> Result<()> {
    for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE)] {
        if pidfd_send_signal(process, signal).is_err() {
            return Ok(());
        }
        if has_ended(process, patience)? {
            return Ok(());
        }
    }
    anyhow::bail!("it survived SIGKILL for {GRACE:?}")
}

/// Waits until the process has ended, when its pidfd becomes readable. Returns whether it ended within `patience`.
pub fn has_ended(process: &OwnedFd, patience: Duration) -> Result<bool> {
    let patience = Timespec::try_from(patience).context("patience out of range")?;
    let mut watched = [PollFd::new(process, PollFlags::IN)];
    Ok(poll(&mut watched, Some(&patience))? > 0)
}

fn remove_namespaces(directory: &Path) -> Result<()> {
    let Ok(names) = fs::read_dir(directory) else { return Ok(()) };
    for name in names {
        let path = name?.path();
        if let Err(error) = unmount(&path, UnmountFlags::DETACH) {
            report(&format!("unmount {}: {error}", path.display()));
        }
        fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

fn lock() -> MutexGuard<'static, Register> {
    REGISTER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Prints a line to standard error, since the lab has no log of its own. A lint forbids `eprintln!`.
pub fn report(text: &str) {
    // Standard error may be closed; there is nowhere else to say so.
    writeln!(std::io::stderr(), "sluice-lab: {text}").ok();
}

fn listen_for_signals() {
    static LISTENING: OnceLock<()> = OnceLock::new();
    LISTENING.get_or_init(|| {
        let (ready, wait) = std::sync::mpsc::channel();
        thread::spawn(move || {
            if let Err(error) = undo_on_signal(&ready) {
                report(&format!("cannot watch for signals: {error:#}"));
            }
        });
        // Returns either way: with the message, or when the thread gives up.
        wait.recv().ok();
    });
}

fn undo_on_signal(ready: &std::sync::mpsc::Sender<()>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        ready.send(()).ok();
        Ok::<_, anyhow::Error>(tokio::select! {
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
            _ = hang_up.recv() => 129,
        })
    })?;
    report("interrupted: undoing everything");
    // Held until the end: nothing new is made meanwhile.
    let register = lock();
    for (_, undo) in register.entries.iter().rev() {
        undo.run();
    }
    // The signal may have made the main thread fail, which then undoes things too.
    while UNDOING.load(Ordering::SeqCst) > 0 {
        thread::sleep(Duration::from_millis(10));
    }
    std::process::exit(code)
}
