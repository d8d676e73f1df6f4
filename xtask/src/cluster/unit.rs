//! One component of the cluster: a script that starts it in the same way every time.
//!
//! `units/PLACE/NAME` is the script, `NAME.pid` its process, `NAME.log` its output. The script enters the component's
//! cgroup and namespaces itself, so that tests can stop and start components without xtask.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{
    cgroups::{self, Hierarchies},
    instance::Instance,
    node,
};
use crate::process;

/// How long a component may take to write its pid, and to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// A component, known by its place and its name.
pub(crate) struct Unit {
    place: String,
    name: String,
    script: PathBuf,
    /// The component's cgroup in version 2's hierarchy, relative to the mount.
    cgroup: String,
}

// === impl Unit ===

impl Unit {
    /// Writes the script of a component that lives in the namespaces of `place`.
    pub(crate) fn define(
        instance: &Instance,
        place: &str,
        name: &str,
        program: &Path,
        arguments: &[String],
    ) -> Result<Self> {
        let enter = node::namespaces(instance, place)?;
        let words: Vec<String> = ["nsenter".to_owned()]
            .into_iter()
            .chain(enter)
            .chain(["--".to_owned(), program.display().to_string()])
            .chain(arguments.iter().cloned())
            .map(|word| quoted(&word))
            .collect();
        let line = words.join(" \\\n    ");
        Self::define_line(instance, place, name, &line)
    }

    /// Writes the script of a component that the shell command `line` starts.
    pub(crate) fn define_line(
        instance: &Instance,
        place: &str,
        name: &str,
        line: &str,
    ) -> Result<Self> {
        let unit = Self::at(instance, place, name);
        let groups = Hierarchies::find()?.make_for_unit(instance, place, name)?;
        let enter: Vec<_> = groups
            .iter()
            .map(|group| {
                format!("echo $$ > {}/cgroup.procs\n", quoted(&group.display().to_string()))
            })
            .collect();
        let text = format!(
            "#!/bin/sh\n# Starts {place}/{name} of the cluster `{cluster}`: in its cgroups and its namespaces.\nset -eu\n\
             {enter}export PATH={path}\n\
             exec >> {script}.log 2>&1 < /dev/null\necho $$ > {script}.pid\nexec {line}\n",
            cluster = instance.name(),
            enter = enter.concat(),
            path = quoted(&instance.path_variable()),
            script = quoted(&unit.script.display().to_string()),
        );
        instance.write(&format!("units/{place}/{name}"), text)?;
        fs::set_permissions(&unit.script, Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} executable", unit.script.display()))?;
        Ok(unit)
    }

    /// Finds a component by the name that people type: `n1/kubelet`.
    pub(crate) fn find(instance: &Instance, text: &str) -> Result<Self> {
        let known = Self::all(instance);
        let names: Vec<String> = known.iter().map(Self::shown).collect();
        known.into_iter().find(|unit| unit.shown() == text).with_context(|| {
            format!("there is no component `{text}`; there are {}", names.join(", "))
        })
    }

    /// Returns every component that was defined.
    pub(crate) fn all(instance: &Instance) -> Vec<Self> {
        let mut units = Vec::new();
        let Ok(places) = fs::read_dir(instance.path("units")) else { return units };
        for place in places.flatten() {
            let Ok(files) = fs::read_dir(place.path()) else { continue };
            let place = place.file_name().to_string_lossy().into_owned();
            let names = files.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
            let scripts = names.filter(|name| !name.contains('.'));
            units.extend(scripts.map(|name| Self::at(instance, &place, &name)));
        }
        units.sort_by_key(Self::shown);
        units
    }

    fn at(instance: &Instance, place: &str, name: &str) -> Self {
        Self {
            place: place.to_owned(),
            name: name.to_owned(),
            script: instance.path("units").join(place).join(name),
            cgroup: format!("/{}/{place}/{name}", cgroups::root(instance)),
        }
    }

    /// Returns the component's name as `PLACE/NAME`.
    pub(crate) fn shown(&self) -> String {
        format!("{}/{}", self.place, self.name)
    }

    /// Starts the component, detached from our terminal. Does nothing if it runs.
    pub(crate) fn start(&self) -> Result<()> {
        if self.pid().is_some() {
            return Ok(());
        }
        let mut command = process::command("setsid");
        command.arg("--fork").arg(&self.script).current_dir("/");
        process::exec(&mut command)?;
        let deadline = Instant::now() + PATIENCE;
        while self.pid().is_none() {
            if Instant::now() > deadline {
                bail!("{} did not start; it said:\n{}", self.shown(), self.last_words());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Kills only the component's main process: containerd's shims, and so the pods, go on.
    pub(crate) fn stop(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while let Some(pid) = self.pid() {
            // Kills by descriptor and checks the pid after opening it: the pid may have a new owner.
            if let Ok(descriptor) = pidfd_open(pid, PidfdFlags::empty())
                && self.pid() == Some(pid)
            {
                pidfd_send_signal(&descriptor, Signal::KILL)
                    .with_context(|| format!("cannot kill {}", self.shown()))?;
            }
            if Instant::now() > deadline {
                bail!("{} survived SIGKILL for {PATIENCE:?}", self.shown());
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Returns the recorded process if it is still in the component's cgroup, where no other component is.
    pub(crate) fn pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.script.with_extension("pid")).ok()?;
        let pid: i32 = text.trim().parse().ok()?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        // Seen from another cgroup namespace, the path in /proc may be longer than ours.
        let own =
            groups.lines().any(|line| line.starts_with("0::") && line.ends_with(&self.cgroup));
        let status = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let is_zombie = status.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'));
        if own && !is_zombie { Pid::from_raw(pid) } else { None }
    }

    /// Returns the end of the component's log.
    pub(crate) fn last_words(&self) -> String {
        let log = fs::read(self.script.with_extension("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines.get(lines.len().saturating_sub(15)..).unwrap_or_default().join("\n")
    }
}

/// Quotes the text as one word of the shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        let word = "a 'b' $c \"d\"";
        let printed = process::output(
            process::command("sh").args(["-c", &format!("printf %s {}", quoted(word))]),
        );
        assert_eq!(printed.unwrap(), word);
    }
}
