//! The programs of this tree, linked so that they need no file of the machine they run on.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build, process,
    workspace::{self, Profile},
};

/// glibc links statically as well: since 2.34 it resolves names from files and DNS without loading a library.
const FLAGS: &str = "-C target-feature=+crt-static -C strip=debuginfo";

/// Every program that goes into an image.
const PROGRAMS: [&str; 3] = ["sluice", "sluice-cni", "sluice-lab"];

/// Compiles the programs; the directory that has them.
pub(crate) fn build(profile: Profile) -> Result<PathBuf> {
    build::prepare()?;
    // Other flags would make cargo compile everything anew in its usual directory, and back again.
    let directory = workspace::target_dir().join("static");
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let given = std::env::var("RUSTFLAGS").unwrap_or_default();
    let flags = format!("{given} {FLAGS}");
    let mut cargo = process::cargo();
    cargo.current_dir(workspace::root()).env("RUSTFLAGS", flags.trim());
    // With an explicit target, compiler plugins are built without the flags, which they could not bear.
    cargo.args(["build", "--profile", profile.name(), "--target", &target, "--target-dir"]);
    cargo.arg(&directory);
    cargo.args(["--package", "sluice-agent", "--package", "sluice-cni"]);
    cargo.args(["--package", "sluice-tests", "--bins"]);
    process::exec(&mut cargo)?;
    let output = place(profile);
    for program in PROGRAMS {
        let path = output.join(program);
        ensure!(is_static(&path), "{} still needs shared libraries: see `ldd {0}`", path.display());
    }
    Ok(output)
}

/// Where the programs are once they are built.
pub(crate) fn place(profile: Profile) -> PathBuf {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    workspace::target_dir().join("static").join(target).join(profile.directory())
}

/// Whether the program names no dynamic loader (ELF's `PT_INTERP`), as the kernel would look for it.
pub(crate) fn is_static(program: &Path) -> bool {
    interpreter(program).is_ok_and(|found| !found)
}

fn interpreter(program: &Path) -> Result<bool> {
    let headers = process::output(
        process::command("readelf").args(["--program-headers", "--wide"]).arg(program),
    )
    .context("reading a program's headers")?;
    Ok(headers.contains(" INTERP "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_told_from_one_without() {
        assert!(!is_static(&process::find("sh").unwrap()));
        assert!(!is_static(Path::new("/no/such/program")));
    }
}
