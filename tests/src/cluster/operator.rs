//! The operator's commands, run where an operator runs them: on this machine, outside of every node.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Cluster;
use crate::agent::binary;

/// The outcome of a command.
#[derive(Debug)]
pub struct Asked {
    /// The exit code: 0 all is well, 1 something is wrong in the mesh, 2 somebody could not be asked.
    pub code: Option<i32>,
    /// What the command printed.
    pub output: String,
    /// What the command complained of.
    pub errors: String,
}

impl Cluster {
    /// Runs `sluice` as the administrator of the cluster.
    pub fn ask(&self, arguments: &[&str]) -> Result<Asked> {
        ask_with(&self.kubeconfig(), arguments)
    }
}

/// Runs `sluice` with a kubeconfig.
pub fn ask_with(kubeconfig: &Path, arguments: &[&str]) -> Result<Asked> {
    let mut command = std::process::Command::new(binary()?);
    command.args(arguments).arg("--kubeconfig").arg(kubeconfig).env_remove("KUBECONFIG");
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Asked {
        code: output.status.code(),
        output: text(&output.stdout),
        errors: text(&output.stderr),
    })
}

impl Asked {
    /// Returns the output as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.output).with_context(|| format!("not JSON: {self:?}"))
    }

    /// Returns everything that the command said.
    pub fn words(&self) -> String {
        format!("{}{}", self.output, self.errors)
    }
}
