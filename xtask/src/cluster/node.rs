//! A node: its namespaces, its own copies of the standard paths, and what runs on it.

use std::{fmt::Write as _, fs, os::unix::net::UnixStream, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};

use super::{
    cgroups,
    instance::{self, Addresses, CONTROL, Instance, NODES, Node},
    pki,
    unit::{Unit, quoted},
};

/// How long a component may take to answer on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// The process that keeps a place's namespaces alive, whatever else ends.
pub(crate) const HOLDER: &str = "holder";

/// The standard paths that each node has for itself: manifests work unchanged.
pub(crate) const OWN_PATHS: [&str; 11] = [
    "/etc/cni/net.d",
    "/opt/cni/bin",
    "/run/containerd",
    "/run/sluice",
    "/var/lib/cni",
    IMAGES,
    "/var/lib/kubelet",
    "/var/lib/sluice",
    "/var/log/containers",
    "/var/log/pods",
    "/etc/sluice",
];

/// Where containerd keeps images: too much for `/run`, which is memory on most machines.
const IMAGES: &str = "/var/lib/containerd";

/// Where the runtime keeps pods' network namespaces. Each node has its own mount here, as of the BPF file system.
const NETNS: &str = "/run/netns";
const BPFFS: &str = "/sys/fs/bpf";

/// Settings that the kubelet would change for the whole machine. It writes only values that differ from those it reads.
/// Each node therefore shows it the values it wants, and the developer's machine stays as it is.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The reference plugins that make up a node's network.
const PLUGINS: [&str; 5] = ["ptp", "bridge", "loopback", "host-local", "portmap"];

/// Returns the arguments of `nsenter` for a place.
pub(crate) fn namespaces(instance: &Instance, place: &str) -> Result<Vec<String>> {
    if place != CONTROL && !NODES.iter().any(|node| node.name == place) {
        bail!("there is no `{place}`: say control, n1 or n2");
    }
    Ok(["net", "mnt"]
        .map(|kind| {
            let option = if kind == "net" { "net" } else { "mount" };
            format!("--{option}={}", instance.path(kind).join(place).display())
        })
        .to_vec())
}

/// Makes the namespaces of a place, with the mounts that only it sees. Returns the process that holds them.
pub(crate) fn hold(instance: &Instance, place: &str) -> Result<Unit> {
    let steps = if place == CONTROL { String::new() } else { own_mounts(instance, place)? };
    let ready = instance.path(&format!("units/{place}/holder.ready"));
    let script = format!("set -eu\n{steps}: > {}\nexec sleep infinity\n", ready.display());
    instance.write(&format!("units/{place}/holder.inside"), script)?;
    for kind in ["net", "mnt"] {
        instance.write(&format!("{kind}/{place}"), "")?;
    }
    let [net, mnt, inside] = [
        instance.path("net").join(place),
        instance.path("mnt").join(place),
        instance.path(&format!("units/{place}/holder.inside")),
    ]
    .map(|path| quoted(&path.display().to_string()));
    let line = format!("unshare --net={net} --mount={mnt} --propagation private sh {inside}");
    let holder = Unit::define_line(instance, place, HOLDER, &line)?;
    holder.start()?;
    super::up::wait_until(PATIENCE, || ready.exists())
        .with_context(|| format!("{} is stuck: {}", holder.shown(), holder.last_words()))?;
    Ok(holder)
}

/// Returns the commands that give a node its own standard paths.
fn own_mounts(instance: &Instance, place: &str) -> Result<String> {
    let mut steps = String::from("echo 1 > /proc/sys/net/ipv4/ip_forward\n");
    steps.push_str("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding\n");
    // Mounts are shared within the node: pods with mount propagation see each other's, as on a real machine.
    steps.push_str("mount --make-rshared /\n");
    // Private, or each mount would appear a second time below the cluster's directory.
    writeln!(
        steps,
        "mount --make-private {}",
        quoted(&instance.directory().display().to_string())
    )?;
    for path in OWN_PATHS {
        let own = if path == IMAGES {
            instance.on_disk().join(place)
        } else {
            instance.path(&format!("nodes/{place}{path}"))
        };
        fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
        let own = quoted(&own.display().to_string());
        writeln!(
            steps,
            "mount --bind {own} {path}\nmount --make-private {path}\nmount --make-shared {path}"
        )?;
    }
    writeln!(steps, "mount -t tmpfs -o mode=755 netns {NETNS}")?;
    writeln!(steps, "mount -t bpf -o mode=700 bpf {BPFFS}")?;
    for (key, value) in TUNABLES {
        let own = format!("nodes/{place}/sysctl/{}", key.replace('/', "."));
        instance.write(&own, format!("{value}\n"))?;
        let own = instance.path(&own).display().to_string();
        writeln!(steps, "mount --bind {} /proc/sys/{key}", quoted(&own))?;
    }
    Ok(steps)
}

/// Makes the mount points that this machine lacks, and notes them for [`remove_mount_points`].
pub(crate) fn make_mount_points() -> Result<()> {
    let mut made = fs::read_to_string(MADE).unwrap_or_default();
    for path in OWN_PATHS.iter().chain(&[NETNS]) {
        let mut missing: Vec<&Path> =
            Path::new(path).ancestors().take_while(|path| !path.exists()).collect();
        while let Some(directory) = missing.pop() {
            writeln!(made, "{}", directory.display())?;
            fs::write(MADE, &made).with_context(|| format!("cannot write {MADE}"))?;
            fs::create_dir(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
    }
    Ok(())
}

/// Removes the mount points that were made, unless somebody has put something there. This is only for the last cluster:
/// removing a directory unmounts it in every other mount namespace.
pub(crate) fn remove_mount_points() {
    let made = fs::read_to_string(MADE).unwrap_or_default();
    for directory in made.lines().rev() {
        // Fails if the directory is not empty: then somebody uses it by now.
        fs::remove_dir(directory).ok();
    }
    fs::remove_file(MADE).ok();
}

const MADE: &str = "/run/sluice-cluster/.mount-points";

/// Writes the node's configuration and starts its containerd.
pub(crate) fn start_containerd(instance: &Instance, node: Node) -> Result<()> {
    let own = |path: &str| format!("nodes/{}{path}", node.name);
    instance.write(&own("/etc/cni/net.d/10-pods.conflist"), conflist(node))?;
    for plugin in PLUGINS {
        let (from, to) = (instance.program(plugin), own(&format!("/opt/cni/bin/{plugin}")));
        fs::copy(&from, instance.path(&to))
            .with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let runc = crate::process::find("runc").context("runc is missing: install it")?;
    let config = own("/containerd.toml");
    instance.write(&config, containerd(&runc))?;
    let unit = Unit::define(
        instance,
        node.name,
        "containerd",
        &instance.program("containerd"),
        &["--config".to_owned(), instance.path(&config).display().to_string()],
    )?;
    unit.start()
}

/// Waits until containerd answers: a kubelet that does not find it exits.
pub(crate) fn await_containerd(instance: &Instance, node: Node) -> Result<()> {
    let socket = instance.path(&format!("nodes/{}/run/containerd/containerd.sock", node.name));
    super::up::wait_until(PATIENCE, || UnixStream::connect(&socket).is_ok())
        .with_context(|| format!("containerd of {} does not answer", node.name))
}

/// Starts kubelet and kube-proxy. The API server must be ready.
pub(crate) fn start_kubelet(instance: &Instance, addresses: Addresses, node: Node) -> Result<()> {
    let own = |name: &str| format!("nodes/{}/{name}", node.name);
    let file = |name: &str| instance.path(&own(name)).display().to_string();
    instance.write(&own("resolv.conf"), "")?;
    instance.write(&own("kubelet.yaml"), kubelet(instance, node))?;
    instance.write(&own("kube-proxy.yaml"), kube_proxy(instance))?;
    Unit::define(
        instance,
        node.name,
        "kubelet",
        &instance.program("kubelet"),
        &[
            format!("--config={}", file("kubelet.yaml")),
            format!("--kubeconfig={}", pki::kubeconfig(instance, node.name).display()),
            format!("--hostname-override={}", node.name),
            format!("--node-ip={},{}", addresses.node4(node), addresses.node6(node)),
            format!("--node-labels=topology.kubernetes.io/zone={}", node.zone()),
        ],
    )?
    .start()?;
    Unit::define(
        instance,
        node.name,
        "kube-proxy",
        &instance.program("kube-proxy"),
        &[
            format!("--config={}", file("kube-proxy.yaml")),
            format!("--hostname-override={}", node.name),
        ],
    )?
    .start()
}

fn conflist(node: Node) -> String {
    format!(
        r#"{{
  "cniVersion": "1.0.0",
  "name": "pods",
  "plugins": [
    {{
      "type": "ptp",
      "mtu": 1500,
      "ipam": {{
        "type": "host-local",
        "ranges": [[{{"subnet": "{}"}}], [{{"subnet": "{}"}}]],
        "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "::/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#,
        node.pods4(),
        node.pods6()
    )
}

fn containerd(runc: &Path) -> String {
    // Both nodes would share NRI's socket. Without CAP_SYS_RESOURCE, as in a container, runc cannot lower the OOM score
    // and fails if it tries.
    format!(
        r#"version = 3
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "sluice.dev/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  SystemdCgroup = false
  BinaryName = "{}"
"#,
        runc.display()
    )
}

fn kubelet(instance: &Instance, node: Node) -> String {
    let ca = pki::file(instance, "ca.crt");
    let [dns4, dns6] = instance::DNS;
    format!(
        r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {{enabled: false}}
  webhook: {{enabled: true}}
  x509: {{clientCAFile: "{ca}"}}
authorization: {{mode: Webhook}}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /{group}/{place}
failCgroupV1: false
enforceNodeAllocatable: []
failSwapOn: false
localStorageCapacityIsolation: false
clusterDomain: cluster.local
clusterDNS: ["{dns4}", "{dns6}"]
resolvConf: "{resolv}"
maxPods: 500
serializeImagePulls: false
registryPullQPS: 0
kubeAPIQPS: 200
kubeAPIBurst: 400
imageGCHighThresholdPercent: 100
evictionHard: {{nodefs.available: "0%", imagefs.available: "0%", memory.available: "1Mi"}}
"#,
        ca = ca.display(),
        group = cgroups::root(instance),
        place = node.name,
        resolv = instance.path(&format!("nodes/{}/resolv.conf", node.name)).display(),
    )
}

fn kube_proxy(instance: &Instance) -> String {
    // The limits of connection tracking belong to the whole machine and are left alone.
    format!(
        r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clusterCIDR: "{}"
clientConnection: {{kubeconfig: "{}"}}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
iptables: {{minSyncPeriod: 100ms}}
"#,
        instance::PODS,
        pki::kubeconfig(instance, "kube-proxy").display(),
    )
}
