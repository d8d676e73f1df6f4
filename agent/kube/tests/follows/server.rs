//! An API server that the test starts and stops.

use std::{
    env, fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tempfile::TempDir;

const WITHIN: Duration = Duration::from_secs(90);
const TOKEN: &str = "test-token";

/// etcd and kube-apiserver, which are ended when this is dropped.
pub(crate) struct Server {
    programs: PathBuf,
    directory: TempDir,
    etcd: Child,
    api: Option<Child>,
    etcd_port: u16,
    port: u16,
}

impl Server {
    /// Starts both programs. Returns `None` where they are not built.
    pub(crate) async fn start() -> Option<Self> {
        let programs = programs()?;
        let directory = TempDir::new().unwrap();
        let (etcd_port, peer_port, port) = (free_port(), free_port(), free_port());
        let path = directory.path();
        let (etcd_url, peer_url) =
            (format!("http://127.0.0.1:{etcd_port}"), format!("http://127.0.0.1:{peer_port}"));
        let etcd = Command::new(programs.join("etcd"))
            .args(["--data-dir", &path.join("etcd").display().to_string()])
            .args(["--listen-client-urls", &etcd_url, "--advertise-client-urls", &etcd_url])
            .args(["--listen-peer-urls", &peer_url, "--unsafe-no-fsync"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        make_keys(path);
        let mut server = Self { programs, directory, etcd, api: None, etcd_port, port };
        server.up().await;
        Some(server)
    }

    /// Starts the API server and waits until it answers.
    pub(crate) async fn up(&mut self) {
        let file = |name: &str| self.directory.path().join(name).display().to_string();
        let log = fs::File::create(self.directory.path().join("api.log")).unwrap();
        let api = Command::new(self.programs.join("kube-apiserver"))
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port))
            .args(["--bind-address=127.0.0.1", &format!("--secure-port={}", self.port)])
            .arg(format!("--cert-dir={}", file("generated")))
            .arg("--service-cluster-ip-range=10.96.0.0/16,fd00:10:96::/112")
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-signing-key-file={}", file("tokens.key")))
            .arg(format!("--service-account-key-file={}", file("tokens.pub")))
            .arg(format!("--token-auth-file={}", file("tokens.csv")))
            .args([
                "--authorization-mode=AlwaysAllow",
                "--disable-admission-plugins=ServiceAccount",
            ])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.api = Some(api);
        let deadline = Instant::now() + WITHIN;
        while self.client().await.apiserver_version().await.is_err() {
            assert!(Instant::now() < deadline, "no API server: {}", self.log());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("api.log")).unwrap_or_default()
    }

    /// Ends the API server; etcd keeps the objects.
    pub(crate) fn down(&mut self) {
        if let Some(mut api) = self.api.take() {
            api.kill().unwrap();
            api.wait().unwrap();
        }
    }

    /// Writes a kubeconfig file for the server and returns its path.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let path = self.directory.path().join("kubeconfig");
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "insecure-skip-tls-verify": true,
            }}],
            "users": [{"name": "test", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        });
        fs::write(&path, config.to_string()).unwrap();
        path
    }

    pub(crate) async fn client(&self) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        Client::try_from(config).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for child in self.api.iter_mut().chain([&mut self.etcd]) {
            // The process may have ended by itself, and a failing test must not panic twice.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn programs() -> Option<PathBuf> {
    let given = env::var_os("SLUICE_KUBERNETES").map(PathBuf::from);
    let found = given.or_else(|| {
        let tools = PathBuf::from(env::var_os("HOME")?).join(".cache/sluice/tools");
        let built = fs::read_dir(tools).ok()?.flatten().map(|entry| entry.path().join("bin"));
        built.filter(|bin| bin.join("kube-apiserver").exists() && bin.join("etcd").exists()).max()
    });
    if found.is_none() {
        assert!(env::var_os("CI").is_none(), "no Kubernetes here: run `cargo xtask cluster build`");
        println!("SKIPPED: no Kubernetes here: run `cargo xtask cluster build`");
    }
    found
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn make_keys(directory: &Path) {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        let output = command.args(arguments.split(' ')).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    openssl("ecparam -name prime256v1 -genkey -noout -out tokens.key");
    openssl("ec -in tokens.key -pubout -out tokens.pub");
    fs::write(directory.join("tokens.csv"), format!("{TOKEN},admin,admin,system:masters\n"))
        .unwrap();
}
