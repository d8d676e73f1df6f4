//! What an agent reports of itself through its own commands.

use std::{
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Agent, POLL, binary};

impl Agent {
    /// Returns what `sluice status --output json` prints.
    pub fn status(&self) -> Result<Value> {
        self.ask("status")
    }

    /// Returns what `sluice certs --output json` prints, whatever it warns of.
    pub fn certs(&self) -> Result<Value> {
        let mut command = Command::new(binary()?);
        command.args(["certs", "--output", "json", "--socket"]).arg(&self.socket);
        let output = command.output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(has_answered(&output), "sluice certs: {error}");
        serde_json::from_slice(&output.stdout).context("sluice did not print JSON")
    }

    /// Returns what `sluice flows --output json` prints.
    pub fn flows(&self) -> Result<Value> {
        self.ask("flows")
    }

    /// Returns one of a pod's counters in the status, such as `outbound_mtls`.
    pub fn counter(&self, pod: &str, counter: &str) -> Result<u64> {
        let status = self.status()?;
        let pods = status.get("pods").and_then(Value::as_array).context("no pods in the status")?;
        let named = |entry: &&Value| entry.get("name").is_some_and(|name| name == pod);
        let entry = pods.iter().find(named).with_context(|| format!("no pod {pod:?} in it"))?;
        let count = entry.pointer(&format!("/counters/{counter}")).and_then(Value::as_u64);
        count.with_context(|| format!("no counter {counter:?} in it"))
    }

    /// Waits until a counter has reached `least`.
    pub fn wait_for_count(&self, pod: &str, counter: &str, least: u64) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let count = self.counter(pod, counter)?;
            if count >= least {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{counter} of {pod} is {count}, not {least}");
            thread::sleep(POLL);
        }
    }

    /// Returns the table that `sluice status` prints for people.
    pub fn status_table(&self) -> Result<String> {
        Ok(String::from_utf8(self.view("status", "table")?)?)
    }

    fn ask(&self, command: &str) -> Result<Value> {
        let answer = self.view(command, "json")?;
        serde_json::from_slice(&answer).context("sluice did not print JSON")
    }

    fn view(&self, command: &str, output: &str) -> Result<Vec<u8>> {
        let output = Command::new(binary()?)
            .args([command, "--output", output, "--socket"])
            .arg(&self.socket)
            .output()?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(has_answered(&output), "sluice {command}: {error}");
        Ok(output.stdout)
    }
}

/// Returns whether the command got an answer. Exit code 1 is one: something is wrong in the mesh.
fn has_answered(output: &Output) -> bool {
    [Some(0), Some(1)].contains(&output.status.code())
}
