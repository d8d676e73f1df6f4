//! The control plane: etcd, API server, controller manager and scheduler as processes, and `CoreDNS` as pods.

use std::process::Stdio;

use anyhow::{Context as _, Result};

use super::{
    instance::{self, Addresses, CONTROL, Instance},
    pki,
    unit::Unit,
};
use crate::process;

const ETCD: &str = "http://127.0.0.1:2379";

/// The manifest of `CoreDNS`, which serves the cluster's names and none from outside.
const COREDNS: &str = include_str!("../../cluster/coredns.yaml");

/// Starts etcd and the API server. Neither is ready when this returns.
pub(crate) fn start_api(instance: &Instance, addresses: Addresses) -> Result<()> {
    let file = |name: &str| pki::file(instance, name).display().to_string();
    start(
        instance,
        "etcd",
        &[
            format!("--data-dir={}", instance.path("etcd").display()),
            format!("--listen-client-urls={ETCD}"),
            format!("--advertise-client-urls={ETCD}"),
            "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
            // A cluster that is made in half a minute has nothing to lose in a power failure.
            "--unsafe-no-fsync=true".to_owned(),
            "--log-level=warn".to_owned(),
        ],
    )?;
    start(
        instance,
        "kube-apiserver",
        &[
            format!("--etcd-servers={ETCD}"),
            format!("--advertise-address={}", addresses.control4()),
            "--bind-address=::".to_owned(),
            format!("--service-cluster-ip-range={}", instance::SERVICES),
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
            format!("--service-account-signing-key-file={}", file("tokens.key")),
            format!("--service-account-key-file={}", file("tokens.pub")),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--kubelet-client-certificate={}", file("client.crt")),
            format!("--kubelet-client-key={}", file("client.key")),
            "--kubelet-preferred-address-types=InternalIP".to_owned(),
            format!("--token-auth-file={}", file("tokens.csv")),
            "--authorization-mode=Node,RBAC".to_owned(),
            "--enable-admission-plugins=NodeRestriction".to_owned(),
            "--allow-privileged=true".to_owned(),
            format!("--cert-dir={}", file("generated")),
        ],
    )
}

/// Returns whether the API server answers that it is ready.
pub(crate) fn is_ready(instance: &Instance) -> bool {
    process::output(kubectl(instance).args(["get", "--raw", "/readyz"]))
        .is_ok_and(|text| text == "ok")
}

/// Starts the controller manager and the scheduler, which need the API server.
pub(crate) fn start_controllers(instance: &Instance) -> Result<()> {
    let file = |name: &str| pki::file(instance, name).display().to_string();
    let kubeconfig =
        |name: &str| format!("--kubeconfig={}", pki::kubeconfig(instance, name).display());
    start(
        instance,
        "kube-controller-manager",
        &[
            kubeconfig("kube-controller-manager"),
            format!("--service-account-private-key-file={}", file("tokens.key")),
            format!("--root-ca-file={}", file("ca.crt")),
            format!("--cluster-signing-cert-file={}", file("ca.crt")),
            format!("--cluster-signing-key-file={}", file("ca.key")),
            format!("--service-cluster-ip-range={}", instance::SERVICES),
            "--use-service-account-credentials=true".to_owned(),
            "--leader-elect=false".to_owned(),
        ],
    )?;
    start(
        instance,
        "kube-scheduler",
        &[kubeconfig("kube-scheduler"), "--leader-elect=false".to_owned()],
    )
}

/// Applies the manifest of `CoreDNS`, whose image has to be on the nodes.
pub(crate) fn apply_dns(instance: &Instance, image: &str) -> Result<()> {
    let [dns4, dns6] = instance::DNS;
    let manifest =
        COREDNS.replace("${IMAGE}", image).replace("${DNS4}", dns4).replace("${DNS6}", dns6);
    let mut apply = kubectl(instance);
    apply.args(["apply", "--server-side", "-f", "-"]).stdin(Stdio::piped());
    apply.stdout(Stdio::null());
    let mut child = apply.spawn().context("cannot start kubectl")?;
    let mut input = child.stdin.take().context("no standard input")?;
    std::io::Write::write_all(&mut input, manifest.as_bytes()).context("kubectl does not read")?;
    drop(input);
    let status = child.wait()?;
    anyhow::ensure!(status.success(), "kubectl did not accept the manifest of CoreDNS: {status}");
    Ok(())
}

/// Returns a kubectl command with the administrator's kubeconfig.
pub(crate) fn kubectl(instance: &Instance) -> std::process::Command {
    let mut command = process::command(instance.program("kubectl"));
    command.arg("--kubeconfig").arg(instance.kubeconfig());
    command
}

fn start(instance: &Instance, name: &str, arguments: &[String]) -> Result<()> {
    Unit::define(instance, CONTROL, name, &instance.program(name), arguments)?.start()
}
