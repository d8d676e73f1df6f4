//! A Delegated Identity API as the proto describes it, and as a SPIRE agent behaves: a first message at once, then
//! one for each change.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::stream::{self, BoxStream};
use sluice_grpc::spire::{
    Spiffeid, SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse, X509svid, X509svidWithKey,
    delegated_identity_server::{DelegatedIdentity, DelegatedIdentityServer},
};
use tokio::{net::UnixListener, sync::watch, task::JoinHandle};
use tonic::{Request, Response, Status, transport::Server};

use crate::testing::Pki;

/// A certificate and its key.
type Pair = (Vec<u8>, Vec<u8>);
type Pushes<T> = BoxStream<'static, Result<T, Status>>;

pub(super) struct SpireAgent {
    pub(super) socket: PathBuf,
    _dir: tempfile::TempDir,
    service: Service,
    federates_with: Mutex<Vec<String>>,
    task: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Service {
    svids: watch::Sender<Option<SubscribeToX509sviDsResponse>>,
    bundles: watch::Sender<Option<SubscribeToX509BundlesResponse>>,
    /// Ends every stream when it changes.
    running: watch::Sender<bool>,
    refusal: Arc<Mutex<Option<String>>>,
    asked: Arc<Mutex<Vec<Vec<String>>>>,
    streams: Arc<AtomicUsize>,
}

/// Counts a stream while it exists.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl SpireAgent {
    pub(super) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let service = Service {
            svids: watch::Sender::default(),
            bundles: watch::Sender::default(),
            running: watch::Sender::new(false),
            refusal: Arc::default(),
            asked: Arc::default(),
            streams: Arc::default(),
        };
        let socket = dir.path().join("admin.sock");
        let mut agent =
            Self { socket, _dir: dir, service, federates_with: Mutex::default(), task: None };
        agent.restart();
        agent
    }

    pub(super) fn restart(&mut self) {
        let listener = UnixListener::bind(&self.socket).unwrap();
        self.service.running.send_replace(true);
        let router =
            Server::builder().add_service(DelegatedIdentityServer::new(self.service.clone()));
        let incoming = stream::unfold(listener, async |listener| {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        let mut running = self.service.running.subscribe();
        let stopped = async move {
            drop(running.wait_for(|running| !running).await);
        };
        self.task = Some(tokio::spawn(async move {
            router.serve_with_incoming_shutdown(incoming, stopped).await.unwrap();
        }));
    }

    /// Ends the agent with all its connections.
    pub(super) async fn stop(&mut self) {
        self.service.running.send_replace(false);
        std::fs::remove_file(&self.socket).unwrap();
        self.task.take().unwrap().await.unwrap();
    }

    /// Says with which trust domains certificates federate from the next push on.
    pub(super) fn federate(&self, domains: &[&str]) {
        *self.federates_with.lock().unwrap() = domains.iter().map(|&name| name.into()).collect();
    }

    /// Pushes certificates (name, certificate, key).
    pub(super) fn svids(&self, svids: &[(&str, &Pair)]) {
        let one = |(name, (certificate, key)): &(&str, &Pair)| {
            let (trust_domain, path) =
                name.strip_prefix("spiffe://").unwrap().split_once('/').unwrap();
            let id = Spiffeid { trust_domain: trust_domain.into(), path: format!("/{path}") };
            let svid = X509svid {
                cert_chain: vec![certificate.clone()],
                id: Some(id),
                expires_at: 0,
                hint: String::new(),
            };
            X509svidWithKey { x509_svid: Some(svid), x509_svid_key: key.clone() }
        };
        let x509_svids = svids.iter().map(one).collect();
        let federates_with = self.federates_with.lock().unwrap().clone();
        let push = SubscribeToX509sviDsResponse { x509_svids, federates_with };
        self.service.svids.send_replace(Some(push));
    }

    pub(super) fn bundles(&self, bundles: &[(&str, &[&Pki])]) {
        let der = |roots: &[&Pki]| {
            roots.iter().map(|root| root.der().to_vec()).collect::<Vec<_>>().concat()
        };
        self.raw_bundles(bundles.iter().map(|(name, roots)| ((*name).to_owned(), der(roots))));
    }

    pub(super) fn raw_bundles(&self, bundles: impl IntoIterator<Item = (String, Vec<u8>)>) {
        let ca_certificates: HashMap<_, _> = bundles.into_iter().collect();
        let push = SubscribeToX509BundlesResponse { ca_certificates };
        self.service.bundles.send_replace(Some(push));
    }

    /// Refuses certificates in these words; with `None`, no more.
    pub(super) fn refuse(&self, words: Option<&str>) {
        *self.service.refusal.lock().unwrap() = words.map(str::to_owned);
    }

    /// The selectors of every subscription to certificates.
    pub(super) fn asked(&self) -> Vec<Vec<String>> {
        self.service.asked.lock().unwrap().clone()
    }

    /// Streams of certificates that are open.
    pub(super) fn open_streams(&self) -> usize {
        self.service.streams.load(Ordering::SeqCst)
    }
}

/// Everything that `source` is set to, until the agent stops.
fn pushes<T: Clone + Send + Sync + 'static>(
    source: &watch::Sender<Option<T>>,
    running: &watch::Sender<bool>,
    counted: Option<Counted>,
) -> Pushes<T> {
    let mut source = source.subscribe();
    source.mark_changed();
    let state = (source, running.subscribe(), counted);
    Box::pin(stream::unfold(state, async |(mut source, mut running, counted)| {
        loop {
            tokio::select! {
                _ = running.wait_for(|running| !running) => return None,
                changed = source.changed() => changed.ok()?,
            }
            let push = source.borrow_and_update().clone();
            if let Some(push) = push {
                return Some((Ok(push), (source, running, counted)));
            }
        }
    }))
}

#[tonic::async_trait]
impl DelegatedIdentity for Service {
    type SubscribeToX509SVIDsStream = Pushes<SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Pushes<SubscribeToX509BundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let SubscribeToX509sviDsRequest { selectors, pid } = request.into_inner();
        assert_eq!(pid, 0, "selectors and a process exclude each other");
        let selectors = selectors
            .into_iter()
            .map(|selector| format!("{}:{}", selector.r#type, selector.value))
            .collect();
        self.asked.lock().unwrap().push(selectors);
        let refusal = self.refusal.lock().unwrap().clone();
        if let Some(words) = refusal {
            return Err(Status::permission_denied(words));
        }
        self.streams.fetch_add(1, Ordering::SeqCst);
        let counted = Counted(Arc::clone(&self.streams));
        Ok(Response::new(pushes(&self.svids, &self.running, Some(counted))))
    }

    async fn subscribe_to_x509_bundles(
        &self,
        _request: Request<SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        Ok(Response::new(pushes(&self.bundles, &self.running, None)))
    }
}
