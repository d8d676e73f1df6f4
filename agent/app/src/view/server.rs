//! Answers the operator's questions on a Unix socket that only root can use.

use std::{
    convert::Infallible,
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use anyhow::Context;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};

use super::model::{Certs, Flow, NodeFacts, Policy, Status};

/// What the agent can tell.
pub(crate) trait Answers: Send + Sync + 'static {
    /// Everything about pods, certificates and policies.
    fn status(&self) -> Status;
    /// Certificates, and what peers are believed by.
    fn certs(&self) -> Certs;
    /// The open connections.
    fn flows(&self) -> Vec<Flow>;
    /// The policies that are known.
    fn policies(&self) -> Vec<Policy>;
    /// The kernel, its hooks and the clock.
    fn node(&self) -> NodeFacts;
}

/// Binds the socket. An existing one is removed: the agent before this one has ended, or has handed over.
pub(crate) fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let directory = path.parent().context("the socket's path has no directory")?;
    if !directory.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    if path.exists() {
        fs::remove_file(path).with_context(|| format!("removing the old {}", path.display()))?;
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until the task is ended.
pub(crate) async fn serve(listener: UnixListener, answers: Arc<dyn Answers>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, Arc::clone(&answers)));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on the operator's socket");
                tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            }
        }
    }
}

async fn converse(stream: UnixStream, answers: Arc<dyn Answers>) {
    // The socket's mode keeps others out already; this also stops those to whom a descriptor was passed on.
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
        tracing::warn!("refused a caller on the operator's socket that is not root");
        return;
    }
    let service = service_fn(move |request| {
        let answers = Arc::clone(&answers);
        async move { Ok::<_, Infallible>(answer(&request, answers.as_ref())) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a caller on the operator's socket went away");
    }
}

fn answer(request: &Request<Incoming>, answers: &dyn Answers) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/status") => json(&answers.status()),
        (&Method::GET, "/flows") => json(&answers.flows()),
        (&Method::GET, "/certs") => json(&answers.certs()),
        (&Method::GET, "/policies") => json(&answers.policies()),
        (&Method::GET, "/node") => json(&answers.node()),
        _ => {
            let advice = "ask for GET /status, /flows, /certs, /policies or /node\n";
            respond(StatusCode::NOT_FOUND, advice.into())
        }
    }
}

fn json(value: &impl Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => respond(StatusCode::OK, body.into()),
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n").into()),
    }
}

fn respond(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}
