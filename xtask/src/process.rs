//! Starts other programs, and says which one failed.
//!
//! `cargo run` leaves its own build variables in our environment. If they were passed on, the cargo that we start would
//! rebuild things, or Debian's cargo would use rustup's compiler. Every command therefore starts without them.

use std::{
    env,
    ffi::OsStr,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, anyhow, bail};

/// Variables that cargo sets for the program it runs, not for that program's children.
const LEFT_BY_CARGO: [&str; 8] = [
    "CARGO_BIN_NAME",
    "CARGO_CRATE_NAME",
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_MANIFEST_PATH",
    "CARGO_PRIMARY_PACKAGE",
    "OUT_DIR",
    "RUST_RECURSION_COUNT",
];

/// Returns a command without the variables that `cargo run` added to the environment.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if LEFT_BY_CARGO.contains(&text.as_ref()) || text.starts_with("CARGO_PKG_") {
            command.env_remove(&name);
        }
    }
    match library_path() {
        Some(kept) => command.env("LD_LIBRARY_PATH", kept),
        None => command.env_remove("LD_LIBRARY_PATH"),
    };
    command
}

/// Returns a command for the cargo that runs us (rustup's chosen toolchain, or the distribution's).
pub(crate) fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs the command to its end, on our own standard input and output.
pub(crate) fn exec(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs the command to its end and returns its standard output. On failure, the error contains all that it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{}`", shown(command)))?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed: {}\n{printed}{complaint}", shown(command), output.status);
    }
    Ok(printed)
}

/// Replaces this process by the program, which then gets the signals and sets the exit status. Returns only on failure.
pub(crate) fn become_program(command: &mut Command) -> anyhow::Error {
    let error = command.exec();
    anyhow!(error).context(format!("cannot start `{}`", shown(command)))
}

/// Finds `program` on `PATH`, or in the system directories that a user's `PATH` may lack.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
}

/// Returns whether we may change the machine: install packages, make namespaces, load programs.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Returns `LD_LIBRARY_PATH` without the directories that cargo prepends: its own output and the toolchain's libraries.
fn library_path() -> Option<std::ffi::OsString> {
    let path = env::var_os("LD_LIBRARY_PATH")?;
    let by_cargo = |directory: &Path| {
        let text = directory.to_string_lossy();
        text.contains("/.rustup/") || text.contains("/rustlib/") || text.contains("/target/")
    };
    let kept: Vec<PathBuf> =
        env::split_paths(&path).filter(|directory| !by_cargo(directory)).collect();
    if kept.is_empty() { None } else { env::join_paths(kept).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_failed_command_is_named() {
        let error = exec(command("false").arg("--really")).unwrap_err();
        assert!(error.to_string().starts_with("`false --really` failed"), "{error}");
        let error = output(&mut command("no-such-program-here")).unwrap_err();
        assert!(error.to_string().contains("cannot start `no-such-program-here`"), "{error}");
    }

    #[test]
    fn a_program_is_found_only_when_it_can_be_run() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
    }

    #[test]
    fn cargo_s_own_variables_do_not_reach_children() {
        let printed = output(&mut command("env")).unwrap();
        assert!(!printed.contains("CARGO_PKG_NAME="), "{printed}");
        assert!(!printed.contains("CARGO_MANIFEST_DIR="), "{printed}");
    }
}
