//! `cargo xtask tidy`: checks rules that compilers do not know; each finding has file, line and what to do.

mod layers;
mod source;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{manifest, workspace};

/// Check what neither rustfmt nor clippy does: file sizes, module docs, names, leftovers, layering.
#[derive(Args)]
pub(crate) struct Options {}

/// The directories that contain the sources.
const SOURCES: [&str; 4] = ["agent", "ebpf", "tests", "xtask"];

/// Something to change, and where.
struct Finding {
    file: PathBuf,
    line: usize,
    /// What is wrong and what to do about it.
    advice: String,
}

pub(crate) fn run(_: &Options) -> Result<()> {
    let root = workspace::root();
    let mut files = Vec::new();
    for directory in SOURCES {
        rust_files(&root.join(directory), &mut files)?;
    }
    files.sort();
    let mut findings = Vec::new();
    let mut safety = source::SafetyTexts::default();
    for path in &files {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(&root).unwrap_or(path);
        findings.extend(source::check(name, &text));
        safety.add(name, &text);
    }
    findings.extend(safety.repeated());
    findings.extend(layers::check(&root)?);
    match manifest::check()? {
        manifest::Checked::InStep => {}
        manifest::Checked::OutOfStep => findings.push(Finding {
            file: PathBuf::from(manifest::FILE),
            line: 1,
            advice: "it is not what the chart makes: run `cargo xtask manifest`".to_owned(),
        }),
        manifest::Checked::NoHelm => {
            println!("tidy: NOT CHECKED, for want of helm: {}", manifest::FILE);
        }
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    if !findings.is_empty() {
        bail!("tidy: {} findings in {} files", findings.len(), files.len());
    }
    println!("tidy: {} files, nothing to do", files.len());
    Ok(())
}

/// Collects every `.rs` file below `directory`, build outputs left out.
fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries = std::fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", directory.display()))?.path();
        if path.is_dir() {
            if !path.ends_with("target") {
                rust_files(&path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

// === impl Finding ===

impl Finding {
    fn new(file: &Path, line: usize, advice: impl Into<String>) -> Self {
        Self { file: file.to_owned(), line, advice: advice.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.file.display(), self.line, self.advice)
    }
}
