//! A compiler for the kernel's instruction set: rustup's nightly with `rust-src`, or Debian's `rustc-web`.
//!
//! Debian's `libstd-rust-web-dev-bpf` ships `core` compiled for BPF, so it needs neither nightly nor `build-std`. The
//! first one that is complete is used; if neither is, Debian's packages or rustup's components are installed.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{apt, bpf_linker, process};

/// The target of the bytecode: BPF in this machine's byte order.
pub(crate) const TARGET: &str =
    if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };

const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";
/// The oldest compiler that the workspace accepts.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// Variables that would make this cargo use another compiler or other flags.
const FOREIGN: [&str; 10] = [
    "CARGO",
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "RUSTC",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

/// A compiler with `core` for BPF, and the linker that understands its LLVM.
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: std::path::PathBuf,
}

struct Compiler {
    kind: Kind,
    /// The major version of the LLVM that writes the bitcode; the linker must read it.
    llvm: u32,
}

#[derive(Clone, Copy)]
enum Kind {
    Nightly,
    Debian,
}

/// Returns a toolchain that is already there, or installs one.
pub(crate) fn find_or_install() -> Result<Toolchain> {
    let mut found: Vec<Compiler> =
        [Kind::Nightly, Kind::Debian].into_iter().filter_map(Compiler::find).collect();
    if let Some(index) = found.iter().position(|compiler| bpf_linker::find(compiler.llvm).is_some())
    {
        return found.swap_remove(index).with_linker();
    }
    match found.iter().position(|compiler| bpf_linker::can_be_built(compiler.llvm)) {
        Some(index) => found.swap_remove(index).with_linker(),
        None => install()?.with_linker(),
    }
}

// === impl Toolchain ===

impl Toolchain {
    /// Returns the toolchain's name for messages.
    pub(crate) fn name(&self) -> String {
        format!("{} (LLVM {})", self.compiler.kind.name(), self.compiler.llvm)
    }

    /// Returns a command that runs this cargo's `subcommand` for [`TARGET`].
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = self.compiler.kind.command("cargo");
        cargo.arg(subcommand).args(["--target", TARGET]);
        if let Kind::Nightly = self.compiler.kind {
            cargo.arg("-Zbuild-std=core");
        }
        // BTF, so that the kernel knows the maps' types and the verifier can quote source lines.
        let flags = ["-Clink-arg=--btf", "-Cdebuginfo=2"].join("\u{1f}");
        cargo.env("CARGO_ENCODED_RUSTFLAGS", flags);
        let target = TARGET.replace('-', "_").to_uppercase();
        cargo.env(format!("CARGO_TARGET_{target}_LINKER"), &self.linker);
        // One optimized unit: the verifier counts every instruction that is left, and calls across units cost stack.
        cargo.env("CARGO_PROFILE_RELEASE_LTO", "fat");
        cargo.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
        cargo.env("CARGO_PROFILE_RELEASE_PANIC", "abort");
        cargo
    }
}

// === impl Compiler ===

impl Compiler {
    /// Returns the compiler, if it is installed, new enough and has `core` for BPF.
    fn find(kind: Kind) -> Option<Self> {
        let (release, llvm) = versions(&kind.ask(&["-vV"])?)?;
        (!older(&release, OLDEST) && kind.has_core()).then_some(Self { kind, llvm })
    }

    fn with_linker(self) -> Result<Toolchain> {
        let linker = match bpf_linker::find(self.llvm) {
            Some(linker) => linker,
            None => bpf_linker::build(self.llvm)?,
        };
        Ok(Toolchain { compiler: self, linker })
    }
}

// === impl Kind ===

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Nightly => "rustup's nightly",
            Self::Debian => "Debian's rustc-web",
        }
    }

    /// Returns a command for this toolchain's own `rustc` or `cargo`, whatever the environment says.
    fn command(self, program: &str) -> Command {
        let mut command = match self {
            Self::Nightly => {
                let mut rustup = process::command("rustup");
                rustup.args(["run", "nightly", program]);
                rustup
            }
            Self::Debian if program == "cargo" => process::command(DEBIAN_CARGO),
            Self::Debian => process::command(DEBIAN_RUSTC),
        };
        for name in FOREIGN {
            command.env_remove(name);
        }
        if let Self::Debian = self {
            // Its `core` is compiled with the unstable features that a BPF crate needs; this lets us use them.
            command.env("RUSTC_BOOTSTRAP", "1").env("RUSTC", DEBIAN_RUSTC);
        }
        command
    }

    fn ask(self, arguments: &[&str]) -> Option<String> {
        process::output(self.command("rustc").args(arguments)).ok()
    }

    fn has_core(self) -> bool {
        match self {
            Self::Nightly => self.ask(&["--print", "sysroot"]).is_some_and(|sysroot| {
                Path::new(sysroot.trim())
                    .join("lib/rustlib/src/rust/library/core/Cargo.toml")
                    .exists()
            }),
            Self::Debian => {
                Path::new(DEBIAN_CARGO).exists()
                    && self
                        .ask(&["--print", "target-libdir", "--target", TARGET])
                        .is_some_and(|directory| holds_core(Path::new(directory.trim())))
            }
        }
    }
}

fn install() -> Result<Compiler> {
    let debian =
        apt::candidate("libstd-rust-web-dev-bpf").filter(|version| !older(version, OLDEST));
    let rustup = process::find("rustup").is_some();
    if debian.is_some() && (process::is_root() || !rustup) {
        apt::install(&DEBIAN_PACKAGES, "a compiler for BPF")?;
        return Compiler::find(Kind::Debian).with_context(|| {
            format!(
                "{} are installed, yet {DEBIAN_RUSTC} has no core for {TARGET}",
                DEBIAN_PACKAGES.join(", ")
            )
        });
    }
    if !rustup {
        bail!(
            "no compiler for BPF: install rustup (https://rustup.rs) and run \
             `rustup toolchain install nightly --profile minimal --component rust-src`, \
             or use a Debian that has {} >= {OLDEST}",
            DEBIAN_PACKAGES.join(", ")
        );
    }
    eprintln!("xtask: installing rustup's nightly with rust-src (a compiler for BPF)");
    let mut rustup = process::command("rustup");
    rustup.args([
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ]);
    process::output(&mut rustup).context("no compiler for BPF")?;
    Compiler::find(Kind::Nightly).context("rustup's nightly is installed, yet it is too old or has no rust-src: run `rustup update nightly`")
}

/// Returns the compiler's release and the major version of its LLVM, from the output of `rustc -vV`.
fn versions(verbose: &str) -> Option<(String, u32)> {
    let value =
        |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let llvm = value("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((value("release:")?.to_owned(), llvm))
}

/// Returns whether the first two numbers of `version` (`1.85.0+dfsg3`, `1.97.0-nightly`) are below `floor` (`1.95`).
fn older(version: &str, floor: &str) -> bool {
    let numbers = |text: &str| {
        let mut parts = text.split(['.', '-', '+']).map(|part| part.parse::<u32>().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    numbers(version) < numbers(floor)
}

fn holds_core(directory: &Path) -> bool {
    std::fs::read_dir(directory).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_rustc_prints() {
        let printed =
            "rustc 1.96.0 (ac68faa20 2026-05-25)\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(versions(printed), Some(("1.96.0".to_owned(), 22)));
        assert_eq!(versions("release: 1.96.0\n"), None);
    }

    #[test]
    fn versions_are_compared_by_number() {
        assert!(older("1.85.0+dfsg3-1~deb12u3", "1.95"));
        assert!(older("1.9.0", "1.95"));
        assert!(!older("1.97.0-nightly", "1.95"));
        assert!(!older("1.95.0", "1.95"));
        assert!(!older("2.0.0", "1.95"));
    }
}
