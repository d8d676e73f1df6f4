//! `sluice controller` as a process of its own beside a cluster, with the permissions that the chart grants.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{
    Cluster, Netns, Process, agent,
    certificate_authority::{CaClient, SERVER_NAME},
    cluster::{Namespace, wait_for},
};

/// How long a replica may take to start; machines that run tests are busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a new root is published before the replicas issue under it.
pub const NEW_ROOT_DELAY: Duration = Duration::from_secs(10);

/// A namespace with the chart's accounts and permissions, and a directory for its controllers.
pub struct Release {
    cluster: Cluster,
    namespace: Namespace,
    directory: PathBuf,
}

/// One replica of the controller.
pub struct Replica {
    process: Process,
    address: SocketAddr,
    directory: PathBuf,
}

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/helm/sluice")
}

// === impl Release ===

impl Release {
    /// Makes the namespace `name`, once what an earlier test has left of it is gone.
    pub fn create(cluster: &Cluster, name: &str) -> Result<Self> {
        let namespace = cluster.namespace(name)?;
        let chart = chart().display().to_string();
        cluster.kubectl(&["apply", "-f", &format!("{chart}/crds")])?;
        // Without a server to ask, helm would assume an old version.
        let only = ["--kube-version", "1.33.0", "--show-only", "templates/accounts.yaml"];
        let accounts = [&["template", name, &chart, "--namespace", name][..], &only].concat();
        cluster.apply(&cluster.helm(&accounts)?)?;
        let directory = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        Ok(Self { cluster: cluster.clone(), namespace, directory })
    }

    /// Returns the release's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns a directory of this release's own.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Starts a replica as the chart would.
    pub fn start(&self, name: &str) -> Result<Replica> {
        let space = self.namespace.name();
        let at = |file: &str| self.directory.join(format!("{name}-{file}"));
        fs::write(at("kubeconfig"), self.kubeconfig()?)?;
        // Another process could take the port before the replica does; then the replica says so, and the test fails.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let config = format!(
            "kubeconfig: {}\nlisten: '{address}'\nserverNames: [{SERVER_NAME}]\nttl: 1h\n\
             ca: {{mode: secret, namespace: {space}, name: sluice-ca, \
             publishRoots: {{namespace: {space}, configMap: sluice-ca-roots, newRootDelay: {}s}}}}\n\
             callers: {{kubernetes: {{audience: sluice-ca, serviceAccounts: [{space}/sluice-agent]}}}}\n\
             pods: kubernetes\n\
             policyStatus: {{namespace: {space}, lease: sluice-controller}}\n",
            at("kubeconfig").display(),
            NEW_ROOT_DELAY.as_secs(),
        );
        fs::write(at("config.yaml"), config)?;
        let mut command = Command::new(agent::binary()?);
        command.args(["controller", "--config"]).arg(at("config.yaml"));
        command.env("POD_NAME", name);
        let here = Netns::open(Path::new("/proc/self/ns/net"))?;
        let mut process = Process::start(&self.directory, &here, name, command)?;
        process.wait_for_line("serving certificates", PATIENCE)?;
        wait_for("the controller's port", PATIENCE, || Ok(TcpStream::connect(address).is_ok()))?;
        Ok(Replica { process, address, directory: at("client") })
    }

    /// Returns a kubeconfig with the credentials of the controller's own service account.
    fn kubeconfig(&self) -> Result<String> {
        let view = self.cluster.kubectl(&["config", "view", "--raw", "-o", "json"])?;
        let mut config: serde_json::Value = serde_json::from_str(&view)?;
        let token = self.namespace.kubectl(&["create", "token", "sluice-controller"])?;
        let user = config.pointer_mut("/users/0/user").context("a kubeconfig without a user")?;
        *user = json!({ "token": token.trim() });
        Ok(config.to_string())
    }

    /// Returns what the Secret or `ConfigMap` called `object` holds under `key`.
    pub fn text(&self, object: &str, key: &str) -> Result<String> {
        let decode = if object.starts_with("secret/") { " | base64decode" } else { "" };
        let template = format!("go-template={{{{index .data \"{key}\"{decode}}}}}");
        self.namespace.kubectl(&["get", object, "-o", &template])
    }
}

impl Drop for Release {
    fn drop(&mut self) {
        let name = format!("{}-controller", self.namespace.name());
        let agent = format!("{}-agent", self.namespace.name());
        for kind in ["clusterrole", "clusterrolebinding"] {
            let arguments = ["delete", kind, &name, &agent, "--ignore-not-found"];
            if let Err(error) = self.cluster.kubectl(&arguments) {
                crate::cleanup::report(&format!("{kind} {name} stays: {error:#}"));
            }
        }
        // Kept if the test fails: the logs are in it.
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.directory).ok();
        }
    }
}

// === impl Replica ===

impl Replica {
    /// Returns a client that trusts `roots`.
    pub fn client(&self, roots: &str) -> Result<CaClient> {
        CaClient::new(self.address, &self.directory, roots)
    }

    /// Returns the replica's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}
