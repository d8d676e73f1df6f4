//! Embeds the kernel programs, so that the agent is one file.
//!
//! `cargo xtask build` makes the bytecode; `SLUICE_BPF_OBJECT` names another object. A build without
//! bytecode is allowed, for tools and editors: such an agent says so when it opens the datapath.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

const OVERRIDE: &str = "SLUICE_BPF_OBJECT";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let object = match env::var_os(OVERRIDE) {
        Some(path) => PathBuf::from(path),
        None => Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../target/bpf/sluice-ebpf"),
    };
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = Path::new(&env::var("OUT_DIR")?).join("sluice-ebpf");
    if object.is_file() {
        fs::copy(&object, &embedded)?;
    } else {
        println!("cargo::warning=no BPF bytecode at {}: run `cargo xtask build`", object.display());
        fs::write(&embedded, [])?;
    }
    Ok(())
}
