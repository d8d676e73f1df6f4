//! The client against a gRPC server over TLS that gives whatever answer a test wants.

mod answers;
mod connection;
mod server;

use std::{path::PathBuf, sync::Arc, time::Duration};

use sluice_tls::{CertStore, Settings, SystemClock, TrustBundle};

use self::server::{Server, Wire};
use super::*;
use crate::testing::{HOUR, OTHER, Pki, WEB, request};

/// A client and all that it needs: a CA behind a wire that can be cut, a token, a root.
struct Bench {
    root: Arc<Pki>,
    server: Server,
    wire: Wire,
    dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        Self::of(&["localhost"]).await
    }

    /// A bench with a server whose certificate holds `names`.
    async fn of(names: &[&str]) -> Self {
        let root = Arc::new(Pki::root("root"));
        let server = Server::start(root.server(names)).await;
        let wire = Wire::to(server.address).await;
        let dir = tempfile::tempdir().unwrap();
        let bench = Self { root, server, wire, dir };
        bench.write("token", "token-1\n");
        bench.write("root.pem", &bench.root.pem());
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn settings(&self) -> IstioCaSettings {
        IstioCaSettings {
            address: format!("https://localhost:{}", self.wire.address.port()),
            server_name: None,
            root_cert: self.path("root.pem"),
            token: self.path("token"),
            cluster_id: "Kubernetes".to_owned(),
            impersonate: true,
            believe_roots: false,
        }
    }

    fn client(&self) -> IstioCa {
        IstioCa::new(self.settings(), Arc::new(SystemClock)).unwrap()
    }

    /// A store that asks this CA and trusts its root.
    fn store(&self) -> CertStore {
        let bundle = TrustBundle::new("cluster.local".parse().unwrap(), [self.root.der()]).unwrap();
        let settings = Settings { request_timeout: Duration::from_secs(1), ..Settings::default() };
        CertStore::new(settings, Arc::new(self.client()), bundle, Arc::new(SystemClock))
    }

    /// Makes the CA sign for the identity of the request with its root, for `seconds`.
    fn sign(&self, seconds: i64) {
        let root = Arc::clone(&self.root);
        self.server.answer(move |csr, id| Ok(vec![root.certify(csr, id, seconds), root.pem()]));
    }
}

/// Returns what the store says about its first request for [`WEB`].
async fn complaint(store: &CertStore) -> String {
    store.want(&WEB.parse().unwrap());
    for _ in 0..500 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        if let Some(error) = store.status().into_iter().find_map(|status| status.last_error) {
            assert!(store.get(&WEB.parse().unwrap()).is_none());
            return error;
        }
    }
    panic!("no complaint: {:?}", store.status());
}
