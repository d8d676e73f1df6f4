//! The cluster that tests run on: made before them, removed after them.

use anyhow::{Result, bail};

use super::{down, instance::Instance, programs, up};
use crate::process;

/// The variable that tells the tests the cluster's directory; `tests/src/cluster.rs` reads it.
const VARIABLE: &str = "SLUICE_CLUSTER";
/// The name of the tests' own cluster: a developer's is left alone.
const NAME: &str = "test";

/// A running cluster for tests; removed when dropped.
pub(crate) struct Suite {
    instance: Instance,
}

/// Returns whether this is CI. Nobody reads there which tests were left out, so leaving some out is an error.
pub(crate) fn is_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| value != "false" && !value.is_empty())
}

/// Returns whether there are the tools that call the CNI plugin in its tests; builds them if need be. Without Go it
/// prints a message and returns `false`, except in CI, where that is an error.
pub(crate) fn has_cni_tools() -> Result<bool> {
    is_built(programs::cni(), "OF THE CNI PLUGIN")
}

/// Returns whether there is an API server for tests that start one of their own, as [`has_cni_tools`] does.
pub(crate) fn has_api_server() -> Result<bool> {
    is_built(programs::api_server(), "BESIDE AN API SERVER")
}

fn is_built(outcome: Result<()>, tests: &str) -> Result<bool> {
    match outcome {
        Err(error) if process::find("go").is_none() && !is_ci() => {
            eprintln!("xtask: NO TESTS {tests}: {error:#}");
            Ok(false)
        }
        outcome => outcome.map(|()| true),
    }
}

// === impl Suite ===

impl Suite {
    /// Starts the cluster. Without Go it prints a message and returns `None`, except in CI, where that is an error.
    pub(crate) fn start() -> Result<Option<Self>> {
        if process::find("go").is_none() {
            if is_ci() {
                bail!(
                    "the cluster suite needs Go, and there is none: see `cargo xtask cluster build`"
                );
            }
            eprintln!(
                "xtask: NO CLUSTER TESTS: this machine has no Go; see `cargo xtask cluster build`"
            );
            return Ok(None);
        }
        let suite = Self { instance: Instance::named(NAME)? };
        up::run(&suite.instance, &up::Options::for_tests())?;
        Ok(Some(suite))
    }

    /// Tells a command where the cluster is.
    pub(crate) fn tell(&self, command: &mut std::process::Command) {
        command.env(VARIABLE, self.instance.directory());
    }
}

impl Drop for Suite {
    fn drop(&mut self) {
        if let Err(error) = down::run(&self.instance) {
            eprintln!(
                "xtask: the tests' cluster is not removed: {error:#}; run `cargo xtask cluster down --instance {NAME}`"
            );
        }
    }
}
