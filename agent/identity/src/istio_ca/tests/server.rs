//! A certificate service over TLS, and a wire in front of it that can be cut.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use sluice_grpc::{
    Kind,
    istio_ca::{
        IMPERSONATED_IDENTITY, IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{
            IstioCertificateService, IstioCertificateServiceServer,
        },
    },
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinHandle},
};
use tonic::{
    Request, Response, Status,
    transport::{
        Identity, ServerTlsConfig,
        server::{Server as Transport, TcpIncoming},
    },
};

type Answer = dyn Fn(&str, &str) -> Result<Vec<String>, Status> + Send + Sync;

/// A request as it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) token: String,
    pub(super) cluster: String,
    pub(super) identity: Option<String>,
    pub(super) seconds: i64,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    service: Service,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Service {
    /// What the service answers; with `None` it never does.
    answer: Arc<Mutex<Option<Arc<Answer>>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Serves with the certificate and key `pem` on a port of 127.0.0.1.
    pub(super) async fn start(pem: (String, String)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = Service { answer: Arc::default(), seen: Arc::default() };
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(pem.0, pem.1));
        let router = Transport::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(IstioCertificateServiceServer::new(service.clone()));
        let task = tokio::spawn(async move {
            router.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Self { address, service, task }
    }

    /// Answers with what `answer` makes of the signing request and the identity.
    pub(super) fn answer(
        &self,
        answer: impl Fn(&str, &str) -> Result<Vec<String>, Status> + Send + Sync + 'static,
    ) {
        *self.service.answer.lock().unwrap() = Some(Arc::new(answer));
    }

    /// Takes requests and does not answer.
    pub(super) fn hang(&self) {
        *self.service.answer.lock().unwrap() = None;
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.service.seen.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let header = |name| {
            request.metadata().get(name).map_or("", |value| value.to_str().unwrap()).to_owned()
        };
        let (token, cluster) = (header("authorization"), header("clusterid"));
        let message = request.into_inner();
        let identity = message.metadata.and_then(|metadata| {
            let value = metadata.fields.get(IMPERSONATED_IDENTITY)?;
            let Some(Kind::StringValue(identity)) = &value.kind else { return None };
            Some(identity.clone())
        });
        let name = identity.clone().unwrap_or_default();
        let seconds = message.validity_duration;
        self.seen.lock().unwrap().push(Seen { token, cluster, identity, seconds });
        let answer = self.answer.lock().unwrap().clone();
        match answer {
            Some(answer) => {
                let cert_chain = answer(&message.csr, &name)?;
                Ok(Response::new(IstioCertificateResponse { cert_chain }))
            }
            None => std::future::pending().await,
        }
    }
}

/// Passes connections on, until it is told otherwise.
pub(super) struct Wire {
    pub(super) address: SocketAddr,
    state: Arc<Mutex<State>>,
    freezes: watch::Sender<()>,
    task: JoinHandle<()>,
}

struct State {
    to: SocketAddr,
    /// Whether new connections are passed on at all.
    up: bool,
    passing: Vec<AbortHandle>,
    accepted: usize,
}

impl Wire {
    pub(super) async fn to(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = State { to, up: true, passing: Vec::new(), accepted: 0 };
        let state = Arc::new(Mutex::new(state));
        let freezes = watch::Sender::new(());
        let task = tokio::spawn(accept(listener, Arc::clone(&state), freezes.subscribe()));
        Self { address, state, freezes, task }
    }

    /// Passes new connections on to another server.
    pub(super) fn lead_to(&self, to: SocketAddr) {
        self.state.lock().unwrap().to = to;
    }

    /// Ends every connection, and each new one at once, until [`Self::restore`].
    pub(super) fn down(&self) {
        let mut state = self.state.lock().unwrap();
        state.up = false;
        for task in state.passing.drain(..) {
            task.abort();
        }
    }

    pub(super) fn restore(&self) {
        self.state.lock().unwrap().up = true;
    }

    /// Leaves the present connections open, but moves no byte of them any more.
    pub(super) fn freeze(&self) {
        self.freezes.send_replace(());
    }

    pub(super) fn accepted(&self) -> usize {
        self.state.lock().unwrap().accepted
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.down();
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<State>>, freezes: watch::Receiver<()>) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        let mut state = state.lock().unwrap();
        state.accepted += 1;
        if state.up {
            let mut freezes = freezes.clone();
            freezes.mark_unchanged();
            let passing = tokio::spawn(pass(near, state.to, freezes));
            state.passing.push(passing.abort_handle());
        }
    }
}

async fn pass(mut near: TcpStream, to: SocketAddr, mut freezes: watch::Receiver<()>) {
    let mut far = TcpStream::connect(to).await.unwrap();
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        _ = freezes.changed() => std::future::pending().await,
    }
}
