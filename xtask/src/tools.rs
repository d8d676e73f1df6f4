//! The real programs that the demo, the tests and the benchmark drive: one list, each with its reason.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::{apt, process, workspace};

/// A real program that is run, never imitated.
pub(crate) struct Program {
    /// The name on `PATH`.
    name: &'static str,
    /// The Debian package that contains the program.
    package: &'static str,
    why: &'static str,
}

const fn program(name: &'static str, package: &'static str, why: &'static str) -> Program {
    Program { name, package, why }
}

/// What building the agent takes: aws-lc is written in C.
pub(crate) const BUILD: [Program; 1] =
    [program("cc", "gcc", "compiles the agent's cryptography (aws-lc)")];

/// What the demo and the namespace tests run in pods, and what they make and inspect the machine's namespaces with.
pub(crate) const LAB: [Program; 4] = [
    program("ip", "iproute2", "makes the namespaces of the nodes and pods, and shows `ip rule`"),
    program("curl", "curl", "the HTTP client in the demo's pods"),
    program("python3", "python3", "the HTTP server in the demo's pods"),
    program("strace", "strace", "ends the CNI plugin's installer at each of its system calls"),
];

/// The benchmark's tools; its harness parses what they print.
pub(crate) const BENCH: [Program; 7] = [
    program("ip", "iproute2", "makes the namespaces"),
    program("nsenter", "util-linux", "runs a program in a namespace without remounting /sys"),
    program("python3", "python3", "runs the harness"),
    program("cc", "gcc", "builds the load generator, tests/bench/mbload.c"),
    program("iperf3", "iperf3", "measures bulk throughput"),
    program("wrk", "wrk", "measures HTTP"),
    program("curl", "curl", "sends the marker that is looked for on the wire"),
];

/// What only ztunnel needs: its redirection is iptables rules.
pub(crate) const ZTUNNEL: [Program; 1] =
    [program("iptables-restore", "iptables", "redirects pods to ztunnel, as istio-cni does")];

/// What the cluster needs besides the programs that xtask builds for it.
pub(crate) const CLUSTER: [Program; 11] = [
    program("ip", "iproute2", "joins the nodes' namespaces"),
    program("unshare", "util-linux", "makes the nodes' namespaces"),
    program("nsenter", "util-linux", "starts programs in them"),
    program("mount", "mount", "gives each node its own standard paths"),
    program("runc", "runc", "runs the pods' containers"),
    program("iptables", "iptables", "kube-proxy and portmap write their rules with it"),
    program("openssl", "openssl", "makes the cluster's certificates"),
    program("tar", "tar", "writes images"),
    program("sha256sum", "coreutils", "names what is in images"),
    program("readelf", "binutils", "tells whether a program is linked statically"),
    program("strip", "binutils", "takes out of the image's programs what only debuggers read"),
];

/// What it takes to boot kernels other than the machine's own.
pub(crate) const KERNEL: [Program; 6] = [
    program("qemu-system-x86_64", "qemu-system-x86", "boots other kernels, to test on them"),
    program("busybox", "busybox-static", "mounts their root file system"),
    program("readelf", "binutils", "tells whether that busybox is linked statically"),
    program("cpio", "cpio", "packs what they start with"),
    program("depmod", "kmod", "finds the modules that they need"),
    program("xz", "xz-utils", "unpacks those modules"),
];

/// Installs the programs that are missing; does nothing, and asks apt nothing, when all are there.
pub(crate) fn ensure(programs: &[Program]) -> Result<()> {
    let missing: Vec<&Program> =
        programs.iter().filter(|program| process::find(program.name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|program| program.package).collect();
    let why: Vec<String> =
        missing.iter().map(|program| format!("{} {}", program.name, program.why)).collect();
    apt::install(&packages, &why.join("; "))
}

/// Returns the path of nginx. If it is not installed, it is fetched as a bare binary: the installed package would start
/// a service on this machine.
pub(crate) fn nginx() -> Result<PathBuf> {
    if let Some(installed) = process::find("nginx") {
        return Ok(installed);
    }
    let directory = workspace::tools_cache()?.join("nginx");
    let binary = directory.join("root/usr/sbin/nginx");
    if binary.exists() {
        return Ok(binary);
    }
    let version =
        apt::candidate("nginx").context("the benchmark's web server is missing: install nginx")?;
    eprintln!(
        "xtask: fetching nginx {version} into {} (not installed, so no service starts)",
        directory.display()
    );
    apt::unpack("nginx", &directory.join("root"))?;
    Ok(binary)
}
