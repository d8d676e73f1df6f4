//! The namespace tests on other kernels than this machine's.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::{
    cluster,
    kernel::{Guest, Kernel},
    process,
    workspace::{self, Profile},
};

/// The kernel that every run without a filter ends with: Debian 12's own.
const KERNEL: &str = "6.1";
/// The suites that run on [`KERNEL`]: what is captured and where it goes, what leaves a pod, and what restores hooks
/// that are taken away.
const SUITES: [&str; 3] = ["capture_live", "escape_matrix", "lost_hooks"];

/// Runs [`SUITES`] on [`KERNEL`]. Where that kernel cannot be had, they are left out with a message, except in CI,
/// where that is an error.
pub(super) fn run_few(cargo: &mut Command) -> Result<()> {
    match Kernel::named(KERNEL) {
        Err(error) if !cluster::is_ci() => {
            eprintln!("xtask: NO TESTS ON ANOTHER KERNEL: {error:#}");
            Ok(())
        }
        kernel => {
            let suites = SUITES.into_iter().map(str::to_owned);
            Programs::built(cargo, suites)?.run(&kernel?, &[])
        }
    }
}

/// Runs these suites on one kernel.
pub(super) fn run(
    cargo: &mut Command,
    kernel: &str,
    suites: &[String],
    arguments: &[String],
) -> Result<()> {
    let kernel = Kernel::named(kernel)?;
    Programs::built(cargo, suites.iter().cloned())?.run(&kernel, arguments)
}

/// Test programs, compiled on this machine and run in the guest, which needs no cargo.
struct Programs {
    /// The programs' paths, by the names of their suites.
    paths: BTreeMap<String, PathBuf>,
    /// The environment variables for the tests.
    environment: BTreeMap<String, String>,
}

impl Programs {
    fn built(cargo: &mut Command, suites: impl Iterator<Item = String>) -> Result<Self> {
        for suite in suites {
            cargo.args(["--test", &suite]);
        }
        cargo.args(["--no-run", "--message-format", "json-render-diagnostics"]);
        // Cargo's progress stays visible.
        let built = process::output(cargo.stderr(Stdio::inherit()))?;
        let paths: BTreeMap<_, _> = built.lines().filter_map(executable).collect();
        if paths.is_empty() {
            bail!("cargo built no test program");
        }
        let here =
            ["HOME", "PATH"].into_iter().filter_map(|name| Some((name.into(), env::var_os(name)?)));
        let told =
            cargo.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        let text = |(name, value): (OsString, OsString)| {
            (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned())
        };
        let mut environment: BTreeMap<_, _> = here.chain(told).map(text).collect();
        // Emulated processors are slow, and tests time what they see: one at a time.
        environment.insert("RUST_TEST_THREADS".to_owned(), "1".to_owned());
        Ok(Self { paths, environment })
    }

    fn run(&self, kernel: &Kernel, arguments: &[String]) -> Result<()> {
        println!("\n     Booting Linux {}", kernel.release());
        Guest::new(kernel)?.run(&self.script(arguments)?)
    }

    /// Returns the guest's script: the kernel's verdict on each kernel program, then every suite, even after a failure.
    fn script(&self, arguments: &[String]) -> Result<String> {
        let sluice = workspace::binary("sluice", Profile::Release);
        let mut script = String::from("failed=0\n");
        for (name, value) in &self.environment {
            writeln!(script, "export {name}={}", quoted(value))?;
        }
        writeln!(script, "cd {} || exit", quoted_path(&workspace::root().join("tests")))?;
        writeln!(script, "{} datapath verify || failed=1", quoted_path(&sluice))?;
        let arguments: Vec<_> = arguments.iter().map(|argument| quoted(argument)).collect();
        for (suite, path) in &self.paths {
            writeln!(script, "echo; echo \"     Running {suite} on Linux $(uname -r)\"")?;
            writeln!(script, "{} {} || failed=1", quoted_path(path), arguments.join(" "))?;
        }
        script.push_str("exit $failed\n");
        Ok(script)
    }
}

/// Returns the suite and its program, if this line of cargo's output reports a test program.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let path = message.get("executable")?.as_str()?;
    let target = message.get("target")?;
    // Cargo also reports the programs that tests start.
    if !target.get("kind")?.as_array()?.iter().any(|kind| kind == "test") {
        return None;
    }
    let suite = target.get("name")?.as_str()?;
    Some((suite.to_owned(), PathBuf::from(path)))
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// Quotes a word for a shell, which then takes it literally.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
