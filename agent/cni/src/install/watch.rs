//! Keeps the entry in place: other plugins rewrite their lists when they start or are upgraded.

use std::{
    collections::VecDeque,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, CreateFlags, Reader, WatchFlags},
    io::Errno,
};

use super::{InstallError, Installed, Options, install, uninstall};
use crate::{
    client::ask,
    protocol::{Answer, Request},
};

/// How often the entry is checked without a notification: a watch may miss what happens to the directory itself.
const RECHECK: Duration = Duration::from_secs(30);
/// How often it is checked while the entry is not in place or the directory is not watched.
const RECHECK_WAITING: Duration = Duration::from_secs(1);
/// How often the agent is asked whether the plugin is still wanted, and how long it has to answer.
const ASK: Duration = Duration::from_secs(1);
/// How long a change may take to settle: others write in several steps.
const SETTLE: Duration = Duration::from_millis(50);
/// This many rewrites by others within [`QUARREL`] mean a rival, not an upgrade.
const MANY: usize = 5;
const QUARREL: Duration = Duration::from_mins(1);
/// How long a rival is then left alone.
const TRUCE: Duration = Duration::from_secs(10);

/// How much a message of the watch matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For the record.
    Info,
    /// Pods may start outside the mesh.
    Warning,
}

/// Installs, and puts back what others remove, until the process ends. It may be killed at any step.
///
/// # Errors
///
/// Only when the kernel has no inotify instance left; everything else is reported and tried again.
pub fn watch(
    options: &Options,
    report: &mut dyn FnMut(Level, &str),
) -> Result<std::convert::Infallible, InstallError> {
    let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
        .map_err(|error| super::draft::failed("watch", &options.config_dir)(error.into()))?;
    let mut keeper = Keeper::default();
    loop {
        if is_unwanted(options, keeper.was_in_place) {
            stay_away(options, report);
            keeper = Keeper::default();
        }
        // Watched anew every time: the directory may have been replaced.
        let events = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        let is_watched = inotify::add_watch(&changes, &options.config_dir, events).is_ok();
        let outcome = install(options);
        let is_settled = matches!(outcome, Ok(Installed::InPlace { .. }));
        let pause = keeper.take(&outcome, Instant::now(), report);
        thread::sleep(pause.unwrap_or_default());
        let patience = if is_watched && is_settled { RECHECK } else { RECHECK_WAITING };
        wait(&changes, patience, || is_unwanted(options, is_settled));
    }
}

/// Returns whether the agent says that Sluice is being uninstalled. Without an agent, or while it does not know, the
/// entry stays: pods must not start outside the mesh.
fn is_unwanted(options: &Options, present: bool) -> bool {
    matches!(ask(&options.entry.socket, &Request::Entry { present }, ASK), Ok(Answer::Outside))
}

/// Takes the entry out, and keeps it out until the agent says that it is wanted again.
fn stay_away(options: &Options, report: &mut dyn FnMut(Level, &str)) {
    let mut outcome = uninstall(options);
    let text =
        "Sluice is being uninstalled: the entry is out, and the plugin lets every call succeed";
    match &outcome {
        Ok(()) => report(Level::Info, text),
        Err(error) => report(Level::Warning, &format!("not uninstalled, trying again: {error}")),
    }
    loop {
        thread::sleep(ASK);
        if outcome.is_err() {
            outcome = uninstall(options);
        }
        let request = Request::Entry { present: outcome.is_err() };
        if matches!(ask(&options.entry.socket, &request, ASK), Ok(Answer::Done)) {
            return report(Level::Info, "the plugin is wanted again");
        }
    }
}

/// Takes the entry out, and again whenever somebody puts it back, until the process ends: for a chart whose plugin was
/// switched off after it had been installed.
pub fn keep_out(options: &Options, report: &mut dyn FnMut(Level, &str)) -> ! {
    let mut said = None;
    loop {
        let outcome = uninstall(options);
        let (level, text) = match &outcome {
            Ok(()) => {
                let text = "the entry is out: pods are captured a moment after their start";
                (Level::Info, text.to_owned())
            }
            Err(error) => (Level::Warning, format!("not taken out, trying again: {error}")),
        };
        if said.as_ref() != Some(&text) {
            report(level, &text);
            said = Some(text);
        }
        // An uninstallation waits for this word; at other times the agent does not mind it.
        drop(ask(&options.entry.socket, &Request::Entry { present: outcome.is_err() }, ASK));
        thread::sleep(ASK);
    }
}

/// What has been found before, so that only news is reported.
#[derive(Debug, Default)]
struct Keeper {
    last: Option<String>,
    was_in_place: bool,
    rewrites: VecDeque<Instant>,
}

// === impl Keeper ===

impl Keeper {
    /// Reports what is new. Returns how long a rival is to be left alone, if there is one.
    fn take(
        &mut self,
        outcome: &Result<Installed, InstallError>,
        now: Instant,
        report: &mut dyn FnMut(Level, &str),
    ) -> Option<Duration> {
        let (level, text) = match outcome {
            Ok(Installed::InPlace { file, changed, main }) => {
                if *changed && self.was_in_place {
                    return self.rewritten(&file.display().to_string(), main, now, report);
                }
                self.was_in_place = true;
                (Level::Info, format!("entered in {} after {main}", file.display()))
            }
            Ok(Installed::Waiting) => {
                let text = "no network list yet: waiting for the main plugin to write one";
                (Level::Warning, text.to_owned())
            }
            Err(error) => (Level::Warning, error.to_string()),
        };
        if self.last.as_ref() != Some(&text) {
            report(level, &text);
            self.last = Some(text);
        }
        None
    }

    fn rewritten(
        &mut self,
        file: &str,
        main: &str,
        now: Instant,
        report: &mut dyn FnMut(Level, &str),
    ) -> Option<Duration> {
        self.rewrites.retain(|then| now.duration_since(*then) < QUARREL);
        self.rewrites.push_back(now);
        let hint = match main {
            "cilium-cni" => "; set cni.exclusive=false in Cilium's values",
            "multus" | "multus-shim" => "; have Multus read the list instead of writing its own",
            _ => "",
        };
        let times = self.rewrites.len();
        report(
            Level::Warning,
            &format!(
                "{file}, whose main plugin is {main}, was written without the entry of Sluice: put back \
                 ({times} times within a minute){hint}"
            ),
        );
        (times >= MANY).then(|| {
            let seconds = TRUCE.as_secs();
            let text = format!(
                "whoever writes {file} does not stop: the next look is in {seconds} s, and pods that \
                 start meanwhile are captured late"
            );
            report(Level::Warning, &text);
            TRUCE
        })
    }
}

/// Returns once the directory has changed and settled, `is_over` is true, or `patience` has passed.
fn wait(changes: &OwnedFd, patience: Duration, mut is_over: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).min(ASK);
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut descriptors = [PollFd::new(changes, PollFlags::IN)];
        if poll(&mut descriptors, Some(&timeout)).is_ok_and(|ready| ready > 0) {
            thread::sleep(SETTLE);
            return drain(changes);
        }
        if Instant::now() >= deadline || is_over() {
            return;
        }
    }
}

fn drain(changes: impl AsFd) {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(changes, &mut buffer);
    loop {
        match events.next() {
            Ok(_) | Err(Errno::INTR) => {}
            // Nothing is left to read; any other fault shows at the next check.
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_is_named_and_then_left_alone_for_a_while() {
        let mut said = Vec::new();
        let mut keeper = Keeper::default();
        let start = Instant::now();
        let mut take = |keeper: &mut Keeper, changed, seconds| {
            let outcome = Ok(Installed::InPlace {
                file: "/etc/cni/net.d/05-cilium.conflist".into(),
                changed,
                main: "cilium-cni".into(),
            });
            let now = start + Duration::from_secs(seconds);
            keeper.take(&outcome, now, &mut |_, text| said.push(text.to_owned()))
        };
        assert_eq!(take(&mut keeper, true, 0), None);
        assert_eq!(take(&mut keeper, false, 1), None);
        for second in 2..6 {
            assert_eq!(take(&mut keeper, true, second), None);
        }
        assert_eq!(take(&mut keeper, true, 6), Some(TRUCE));
        assert_eq!(take(&mut keeper, true, 100), None, "quarrels are forgotten");
        assert_eq!(said.len(), 1 + 4 + 2 + 1, "{said:?}");
        assert!(said[1].contains("cni.exclusive=false"));
        assert!(said[6].contains("does not stop"));
    }
}
