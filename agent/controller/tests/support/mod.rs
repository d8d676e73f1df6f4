//! A controller on a real port, and a client that speaks to it as any agent would.

use std::{
    fs::{self, Permissions},
    future::Future,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use sluice_controller::{
    CaFiles, CaMaterial, Limits, Parts, Settings, SnapshotPlacement, Standing, TokenFile, serve,
};
use sluice_grpc::istio_ca::{
    IstioCertificateRequest, impersonating,
    istio_certificate_service_client::IstioCertificateServiceClient,
};
use sluice_source::FileSource;
use sluice_tls::{
    CertificateDer, Clock, PeerRole, Svid, SystemClock, TrustBundle, certificates_of_pem,
    verify_chain,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tonic::{
    Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig},
};

pub(crate) const ONE: &str = "token-of-node-one-0123456789abcdef";
pub(crate) const TWO: &str = "token-of-node-two-0123456789abcdef";
pub(crate) const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub(crate) const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
pub(crate) const DAY: Duration = Duration::from_hours(24);

/// `web` runs on node one, `cart` on node two.
pub(crate) const MESH: &str = "
pods:
- {namespace: shop, name: web-1, node: one, serviceAccount: web, addresses: [10.0.0.1]}
- {namespace: shop, name: cart-1, node: two, serviceAccount: cart, addresses: [10.0.0.2]}
";

/// The settings of a controller that a test may change.
pub(crate) struct Setup {
    pub(crate) mesh: Option<&'static str>,
    pub(crate) ttl: Duration,
    pub(crate) limits: Limits,
    pub(crate) material: Option<Arc<dyn CaMaterial>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) standing: Arc<Standing>,
}

/// A running controller, with the files that it reads.
pub(crate) struct Controller {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    _stop: oneshot::Sender<()>,
    _task: JoinHandle<()>,
}

/// A client that trusts the roots it is given.
#[derive(Clone)]
pub(crate) struct Client(pub(crate) IstioCertificateServiceClient<Channel>);

/// A request. Its CSR holds `names` as URIs.
pub(crate) struct Ask<'a> {
    pub(crate) token: &'a str,
    pub(crate) id: &'a str,
    pub(crate) names: &'a [&'a str],
    pub(crate) seconds: i64,
}

// === impl Setup ===

impl Default for Setup {
    fn default() -> Self {
        Self {
            mesh: Some(MESH),
            ttl: DAY,
            limits: Limits::default(),
            material: None,
            clock: Arc::new(SystemClock),
            standing: Arc::default(),
        }
    }
}

impl Setup {
    pub(crate) async fn start(self) -> Controller {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        write_tokens(&path("tokens.yaml"), &[(ONE, "one"), (TWO, "two")]);
        if let Some(mesh) = self.mesh {
            fs::write(path("mesh.yaml"), mesh).unwrap();
        }
        let domain = "cluster.local".parse().unwrap();
        let source = FileSource::watch_mesh(&path("mesh.yaml"), &domain).unwrap();
        let material = self.material.unwrap_or_else(|| Arc::new(CaFiles::embedded(&path("ca"))));
        let parts = Parts {
            callers: Arc::new(TokenFile::open(&path("tokens.yaml")).unwrap()),
            placement: Arc::new(SnapshotPlacement(source.snapshots)),
            material,
            clock: self.clock,
            standing: self.standing,
        };
        let settings = Settings {
            trust_domain: domain,
            ttl: self.ttl,
            server_names: vec!["ca.test".to_owned(), "127.0.0.1".to_owned()],
            limits: self.limits,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            serve(listener, settings, parts, async { drop(stopped.await) }).await.unwrap();
        });
        Controller { dir, address, _stop: stop, _task: task }
    }
}

// === impl Controller ===

impl Controller {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A client that trusts the embedded root.
    pub(crate) async fn client(&self) -> Client {
        let root = self.path("ca/ca.crt");
        eventually("a root", async || root.exists()).await;
        self.client_trusting(&fs::read_to_string(root).unwrap(), "ca.test").await.unwrap()
    }

    pub(crate) async fn client_trusting(
        &self,
        roots: &str,
        name: &str,
    ) -> Result<Client, tonic::transport::Error> {
        Self::client_at(self.address, roots, name).await
    }

    /// The same by another way.
    pub(crate) async fn client_at(
        address: SocketAddr,
        roots: &str,
        name: &str,
    ) -> Result<Client, tonic::transport::Error> {
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots)).domain_name(name);
        let endpoint = Channel::from_shared(format!("https://{address}")).unwrap();
        let channel = endpoint.tls_config(tls)?.connect().await?;
        Ok(Client(IstioCertificateServiceClient::new(channel)))
    }
}

// === impl Client ===

impl Client {
    pub(crate) async fn ask(&self, ask: &Ask<'_>) -> Result<Vec<String>, Status> {
        let request = IstioCertificateRequest {
            csr: csr(ask.names),
            validity_duration: ask.seconds,
            metadata: Some(impersonating(ask.id)),
        };
        self.send(request, Some(&format!("Bearer {}", ask.token))).await
    }

    pub(crate) async fn send(
        &self,
        request: IstioCertificateRequest,
        authorization: Option<&str>,
    ) -> Result<Vec<String>, Status> {
        let mut request = Request::new(request);
        if let Some(value) = authorization {
            request.metadata_mut().insert("authorization", value.parse().unwrap());
        }
        Ok(self.0.clone().create_certificate(request).await?.into_inner().cert_chain)
    }

    /// Returns the code and the rule of the refusal.
    pub(crate) async fn refusal(&self, ask: &Ask<'_>) -> (tonic::Code, String) {
        rule(&self.ask(ask).await.expect_err("a certificate was issued"))
    }
}

impl<'a> Ask<'a> {
    /// A usual request for `id` by the agent with `token`.
    pub(crate) fn new(token: &'a str, id: &'a str) -> Self {
        Self { token, id, names: &[], seconds: 3_600 }
    }
}

pub(crate) fn rule(status: &Status) -> (tonic::Code, String) {
    let (rule, _) = status.message().split_once(": ").unwrap_or((status.message(), ""));
    (status.code(), rule.to_owned())
}

pub(crate) fn csr(names: &[&str]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names =
        names.iter().map(|name| SanType::URI((*name).try_into().unwrap())).collect();
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

pub(crate) fn write_tokens(path: &Path, tokens: &[(&str, &str)]) {
    let lines = tokens.iter().map(|(token, node)| format!("- {{token: {token}, node: {node}}}\n"));
    let draft = path.with_extension("new");
    fs::write(&draft, lines.collect::<String>() + "# end\n").unwrap();
    fs::set_permissions(&draft, Permissions::from_mode(0o600)).unwrap();
    fs::rename(&draft, path).unwrap();
}

/// Splits an answer into the certificates without the roots, and the roots, which are its last
/// text.
pub(crate) fn parts_of(
    chain: &[String],
) -> (Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>) {
    let (roots, path) = chain.split_last().unwrap();
    let path = path.iter().map(|pem| {
        let mut certificates = certificates_of_pem(pem.as_bytes()).unwrap();
        assert_eq!(certificates.len(), 1, "one certificate in each text but the last");
        certificates.remove(0)
    });
    (path.collect(), certificates_of_pem(roots.as_bytes()).unwrap())
}

/// Judges an answer as both kinds of peer would, by the root that came with it.
pub(crate) fn verified(chain: &[String]) -> Svid {
    let (path, roots) = parts_of(chain);
    let bundle = TrustBundle::new("cluster.local".parse().unwrap(), roots).unwrap();
    verify_chain(&bundle, &path, PeerRole::Client, SystemClock.now()).unwrap();
    verify_chain(&bundle, &path, PeerRole::Server, SystemClock.now()).unwrap()
}

/// Waits up to ten seconds until `holds` returns true.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..200 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within ten seconds: {what}");
}
