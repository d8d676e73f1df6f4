//! Which crate may use which: only those below it, checked against what cargo reads in each `Cargo.toml`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Finding;
use crate::process;

/// Each crate with the crates of this workspace that it may use. A crate that is not listed is refused.
const LAYERS: [(&str, &[&str]); 22] = [
    ("sluice-abi", &[]),
    ("sluice-files", &[]),
    ("sluice-spiffe", &[]),
    ("sluice-sys", &[]),
    ("sluice-wire", &[]),
    ("sluice-grpc", &[]),
    // The plugin is small: it asks the agent and contains none of its crates.
    ("sluice-cni", &[]),
    ("sluice-policy", &["sluice-spiffe"]),
    ("sluice-tls", &["sluice-files", "sluice-spiffe"]),
    ("sluice-ebpf", &["sluice-abi"]),
    ("sluice-mesh", &["sluice-policy", "sluice-spiffe"]),
    ("sluice-kernel", &["sluice-abi", "sluice-sys"]),
    ("sluice-identity", &["sluice-files", "sluice-grpc", "sluice-spiffe", "sluice-tls"]),
    ("sluice-cluster", &["sluice-mesh", "sluice-policy", "sluice-spiffe"]),
    (
        "sluice-kube",
        &["sluice-cluster", "sluice-files", "sluice-mesh", "sluice-policy", "sluice-spiffe"],
    ),
    ("sluice-source", &["sluice-files", "sluice-mesh", "sluice-policy", "sluice-spiffe"]),
    (
        "sluice-controller",
        &[
            "sluice-files",
            "sluice-grpc",
            "sluice-mesh",
            "sluice-policy",
            "sluice-source",
            "sluice-spiffe",
            "sluice-tls",
        ],
    ),
    ("sluice-pods", &["sluice-kernel", "sluice-mesh", "sluice-spiffe", "sluice-sys"]),
    (
        "sluice-proxy",
        &[
            "sluice-kernel",
            "sluice-mesh",
            "sluice-pods",
            "sluice-policy",
            "sluice-spiffe",
            "sluice-sys",
            "sluice-tls",
            "sluice-wire",
        ],
    ),
    // Assembles the others and shows them to the operator; only the kernel's own types stay behind `kernel`.
    (
        "sluice-agent",
        &[
            "sluice-cluster",
            "sluice-cni",
            "sluice-controller",
            "sluice-identity",
            "sluice-kernel",
            "sluice-kube",
            "sluice-mesh",
            "sluice-pods",
            "sluice-policy",
            "sluice-proxy",
            "sluice-source",
            "sluice-spiffe",
            "sluice-sys",
            "sluice-tls",
            "sluice-wire",
        ],
    ),
    // These drive the binaries from outside, as a user does.
    ("sluice-tests", &[]),
    ("xtask", &[]),
];

/// Libraries that are confined to a few crates, with the crates that may name them.
const WALLED: [(&str, &[&str]); 9] = [
    ("aya", &["sluice-abi", "sluice-kernel"]),
    ("aya-log", &["sluice-kernel"]),
    ("aya-ebpf", &["sluice-ebpf"]),
    ("aya-log-ebpf", &["sluice-ebpf"]),
    ("notify", &["sluice-files"]),
    ("rustls", &["sluice-tls"]),
    ("tonic", &["sluice-grpc", "sluice-identity", "sluice-controller"]),
    ("kube", &["sluice-kube"]),
    ("k8s-openapi", &["sluice-cluster", "sluice-kube"]),
];

pub(super) fn check(root: &Path) -> Result<Vec<Finding>> {
    let mut cargo = process::cargo();
    cargo.current_dir(root).args(["metadata", "--no-deps", "--format-version", "1"]);
    let metadata: Value = serde_json::from_str(&process::output(&mut cargo)?)
        .context("cargo metadata is not JSON")?;
    let mut findings = Vec::new();
    for package in entries(&metadata, "packages") {
        let manifest = PathBuf::from(text(package, "manifest_path"));
        let lines = std::fs::read_to_string(&manifest)
            .with_context(|| format!("cannot read {}", manifest.display()))?;
        let file = manifest.strip_prefix(root).unwrap_or(&manifest);
        let dependencies: Vec<&str> =
            entries(package, "dependencies").map(|dependency| text(dependency, "name")).collect();
        for (about, advice) in refused(text(package, "name"), &dependencies) {
            findings.push(Finding::new(file, line_of(&lines, about), advice));
        }
        if !lines.contains("[lints]\nworkspace = true") {
            findings.push(Finding::new(
                file,
                1,
                "add `[lints]` with `workspace = true`: the lints are the same everywhere",
            ));
        }
    }
    Ok(findings)
}

/// Returns the dependencies that `package` must not have, each with what to do.
fn refused<'a>(package: &'a str, dependencies: &[&'a str]) -> Vec<(&'a str, String)> {
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == package) else {
        return vec![(
            package,
            format!(
                "`{package}` has no place among the layers: add it to xtask/src/tidy/layers.rs"
            ),
        )];
    };
    let ours = |name: &str| LAYERS.iter().any(|(layer, _)| *layer == name);
    let mut refused = Vec::new();
    for &dependency in dependencies {
        if ours(dependency) && !allowed.contains(&dependency) {
            let advice = format!(
                "`{package}` must not use `{dependency}`: arrows run one way; pass what is needed from above, or move it down"
            );
            refused.push((dependency, advice));
        }
        if let Some((_, walls)) = WALLED.iter().find(|(name, _)| *name == dependency)
            && !walls.contains(&package)
        {
            let advice = format!(
                "`{dependency}` is named only in {walls:?}: use what that crate offers, or add to it"
            );
            refused.push((dependency, advice));
        }
    }
    refused
}

fn entries<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// Returns the number of the manifest's line that names the dependency.
fn line_of(manifest: &str, dependency: &str) -> usize {
    let names = |line: &str| {
        line.strip_prefix(dependency).is_some_and(|rest| rest.starts_with(['.', ' ', '=']))
    };
    manifest.lines().position(names).map_or(1, |index| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrows_run_one_way() {
        assert!(refused("sluice-proxy", &["sluice-kernel", "tokio"]).is_empty());
        assert_eq!(refused("sluice-kernel", &["sluice-proxy"]).len(), 1);
        assert_eq!(refused("sluice-newcomer", &[]).len(), 1);
    }

    #[test]
    fn walled_libraries_stay_in_their_crates() {
        assert!(refused("sluice-kernel", &["aya"]).is_empty());
        assert_eq!(refused("sluice-pods", &["aya"]).len(), 1);
        assert_eq!(refused("sluice-agent", &["kube"]).len(), 1);
    }

    #[test]
    fn no_layer_uses_one_that_comes_after_it() {
        for (index, (_, allowed)) in LAYERS.iter().enumerate() {
            for dependency in *allowed {
                assert!(
                    LAYERS.iter().take(index).any(|(name, _)| name == dependency),
                    "{dependency}"
                );
            }
        }
    }

    #[test]
    fn a_finding_points_at_its_line() {
        let manifest = "[dependencies]\naya-log.workspace = true\naya = \"1\"\n";
        assert_eq!(line_of(manifest, "aya"), 3);
        assert_eq!(line_of(manifest, "aya-log"), 2);
    }
}
