//! The programs of the cluster: published Go modules, each built once per user and version.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{process, workspace};

/// Packages of a Go module at a version, built with `go install`.
struct Module {
    name: &'static str,
    version: &'static str,
    /// Import paths; the last part of each names its program.
    packages: &'static [&'static str],
}

/// The version that `xtask/cluster/kube/go.mod` decides; this copy names the directory and is what the programs report.
const KUBERNETES: &str = "1.36.3";

/// The names of the links to the one program that all of Kubernetes is built into.
const COMPONENTS: [&str; 7] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

const MODULES: [Module; 5] = [
    Module {
        name: "containerd",
        version: "2.4.2",
        packages: &[
            "github.com/containerd/containerd/v2/cmd/containerd",
            "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
            "github.com/containerd/containerd/v2/cmd/ctr",
        ],
    },
    Module {
        name: "cni-plugins",
        version: "1.9.1",
        packages: &[
            "github.com/containernetworking/plugins/plugins/main/bridge",
            "github.com/containernetworking/plugins/plugins/main/loopback",
            "github.com/containernetworking/plugins/plugins/main/ptp",
            "github.com/containernetworking/plugins/plugins/ipam/host-local",
            "github.com/containernetworking/plugins/plugins/meta/portmap",
        ],
    },
    Module {
        name: "cnitool",
        version: "1.3.0",
        packages: &["github.com/containernetworking/cni/cnitool"],
    },
    Module { name: "coredns", version: "1.13.1", packages: &["github.com/coredns/coredns"] },
    Module { name: "helm", version: "3.19.2", packages: &["helm.sh/helm/v3/cmd/helm"] },
];

/// The version that names the image of `CoreDNS`.
pub(crate) const COREDNS: &str = "1.13.1";

/// The directories of the built programs.
pub(crate) struct Programs {
    /// One directory for Kubernetes and one for each module.
    directories: Vec<PathBuf>,
}

/// Builds what is missing. The caller may be any user; the cache is that user's.
pub(crate) fn ensure() -> Result<Programs> {
    let cache = workspace::tools_cache()?;
    let mut directories = vec![kubernetes(&cache)?];
    for module in &MODULES {
        directories.push(install(module, &cache)?);
    }
    Ok(Programs { directories })
}

/// Builds only what calls a CNI plugin as a container runtime does.
pub(crate) fn cni() -> Result<()> {
    let cache = workspace::tools_cache()?;
    let mut modules =
        MODULES.iter().filter(|module| ["cni-plugins", "cnitool"].contains(&module.name));
    modules.try_for_each(|module| install(module, &cache).map(drop))
}

/// Builds only Kubernetes itself, of which an API server is a part.
pub(crate) fn api_server() -> Result<()> {
    kubernetes(&workspace::tools_cache()?).map(drop)
}

/// Returns the path of helm: from the cache, or built if `may_build` is set and there is Go. `None` otherwise.
pub(crate) fn helm(may_build: bool) -> Result<Option<PathBuf>> {
    let Some(module) = MODULES.iter().find(|module| module.name == "helm") else { return Ok(None) };
    let cache = workspace::tools_cache()?;
    let cached = cache.join(format!("{}-{}/bin/helm", module.name, module.version));
    if cached.exists() {
        return Ok(Some(cached));
    }
    if !may_build || process::find("go").is_none() {
        return Ok(None);
    }
    Ok(Some(install(module, &cache)?.join("helm")))
}

// === impl Programs ===

impl Programs {
    /// Fills `bin` with links to all programs.
    pub(crate) fn link_into(&self, bin: &Path) -> Result<()> {
        fs::create_dir_all(bin).with_context(|| format!("cannot make {}", bin.display()))?;
        for directory in &self.directories {
            let entries = fs::read_dir(directory)
                .with_context(|| format!("cannot read {}", directory.display()))?;
            for entry in entries.flatten() {
                let link = bin.join(entry.file_name());
                fs::remove_file(&link).ok();
                symlink(entry.path(), &link)
                    .with_context(|| format!("cannot make {}", link.display()))?;
            }
        }
        Ok(())
    }
}

fn kubernetes(cache: &Path) -> Result<PathBuf> {
    let sources = workspace::root().join("xtask/cluster/kube");
    let mut text = String::new();
    for file in ["main.go", "go.mod", "go.sum"] {
        let path = sources.join(file);
        text += &fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
    }
    let flags = link_flags();
    text += &flags;
    let directory = cache.join(format!("kubernetes-{KUBERNETES}"));
    // The version alone does not tell: with a changed dependency it is another program under the same name.
    let built_from = directory.join("sources");
    if fs::read_to_string(&built_from).is_ok_and(|built| built == text) {
        return Ok(directory.join("bin"));
    }
    let build = directory.join("new");
    say(&directory, "Kubernetes", KUBERNETES, "five minutes on two processors");
    let started = Instant::now();
    let mut go = go()?;
    go.current_dir(&sources).args(["build", "-trimpath", &format!("-ldflags={flags}"), "-o"]);
    process::exec(go.arg(build.join("kube")).arg("."))?;
    for component in COMPONENTS {
        let link = build.join(component);
        fs::remove_file(&link).ok();
        symlink("kube", &link).with_context(|| format!("cannot make {}", link.display()))?;
    }
    put_in_place(&build, &directory)?;
    fs::write(&built_from, text)
        .with_context(|| format!("cannot write {}", built_from.display()))?;
    eprintln!("xtask: Kubernetes is built ({} s)", started.elapsed().as_secs());
    Ok(directory.join("bin"))
}

/// Returns the flags that set the programs' version, which charts and clients ask for. Kubernetes' own build sets the
/// same variables.
fn link_flags() -> String {
    let mut numbers = KUBERNETES.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [
            ("gitVersion", format!("v{KUBERNETES}")),
            ("gitMajor", major.to_owned()),
            ("gitMinor", minor.to_owned()),
        ] {
            flags = format!("{flags} -X {package}.{name}={value}");
        }
    }
    flags
}

fn install(module: &Module, cache: &Path) -> Result<PathBuf> {
    let directory = cache.join(format!("{}-{}", module.name, module.version));
    if directory.join("bin").exists() {
        return Ok(directory.join("bin"));
    }
    let build = directory.join("new");
    say(&directory, module.name, module.version, "a minute or two");
    let mut go = go()?;
    go.current_dir("/").env("GOBIN", &build);
    go.args(["install", "-trimpath", "-ldflags=-s -w"]);
    go.args(module.packages.iter().map(|package| format!("{package}@v{}", module.version)));
    process::output(&mut go)?;
    put_in_place(&build, &directory)?;
    Ok(directory.join("bin"))
}

/// Moves a finished build to where it is looked for: an unfinished one never gets that name.
fn put_in_place(build: &Path, directory: &Path) -> Result<()> {
    let bin = directory.join("bin");
    if bin.exists() {
        fs::remove_dir_all(&bin).with_context(|| format!("cannot remove {}", bin.display()))?;
    }
    fs::rename(build, &bin).with_context(|| format!("cannot make {}", bin.display()))
}

fn say(directory: &Path, name: &str, version: &str, time: &str) {
    eprintln!(
        "xtask: building {name} {version} from its Go modules into {} (once, {time})",
        directory.display()
    );
}

/// Returns a `go` command that links statically: the programs run in images and on any machine of the cache's user.
fn go() -> Result<Command> {
    let Some(go) = process::find("go") else {
        bail!(
            "the cluster's programs are Go modules, and there is no `go`: install Go 1.21 or newer from \
             https://go.dev/dl (it fetches the version that Kubernetes needs by itself)"
        );
    };
    let mut command = process::command(go);
    command.env("CGO_ENABLED", "0").env_remove("GOBIN").env_remove("GOFLAGS");
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_named_after_the_version_that_is_built() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/kube/go.mod");
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(&format!("k8s.io/kubernetes v{KUBERNETES}\n")), "{text}");
        let coredns = MODULES.iter().find(|module| module.name == "coredns").unwrap();
        assert_eq!(coredns.version, COREDNS);
    }
}
