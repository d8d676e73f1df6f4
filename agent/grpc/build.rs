//! Generates the gRPC code from `proto/`, with a compiler written in Rust: no `protoc` is needed.

use std::{error::Error, path::Path};

const PROTOS: [&str; 2] =
    ["istio/v1/auth/ca.proto", "spire/api/agent/delegatedidentity/v1/delegatedidentity.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let descriptors = protox::compile(PROTOS, [&root])?;
    // A message that carries a private key must not reach a log by way of `{:?}`.
    tonic_prost_build::configure()
        .skip_debug([".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey"])
        .compile_fds(descriptors)?;
    Ok(())
}
