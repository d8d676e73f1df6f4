//! The HTTP listener of metrics and health.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use super::Export;
use crate::listen;

/// Callers at the same time: enough for a scraper, a kubelet and somebody with curl.
const MAX_CALLERS: usize = 16;
/// How long a caller may take over its request.
const REQUEST_TIME: Duration = Duration::from_secs(10);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Listens in the namespace of the calling thread, which must be the node's.
pub(crate) fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    listen::on(address).with_context(|| {
        format!("listening for metrics on {address}; `metrics:` names another address")
    })
}

/// Serves until the task is ended.
pub(crate) async fn serve(listener: TcpListener, exporter: Arc<dyn Export>) {
    let callers = Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Beyond the bound a caller is turned away at once.
                let Ok(permit) = Arc::clone(&callers).try_acquire_owned() else { continue };
                let exporter = Arc::clone(&exporter);
                tokio::spawn(async move {
                    converse(stream, exporter).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on the metrics listener");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn converse(stream: TcpStream, exporter: Arc<dyn Export>) {
    let service = service_fn(move |request| {
        let exporter = Arc::clone(&exporter);
        async move { Ok::<_, Infallible>(answer(&request, &*exporter)) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_TIME)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a caller of the metrics listener went away");
    }
}

fn answer(request: &Request<Incoming>, exporter: &dyn Export) -> Response<Full<Bytes>> {
    let known = [Method::GET, Method::HEAD].contains(request.method());
    match request.uri().path() {
        "/metrics" if known => match exporter.text() {
            Ok(text) => respond(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        },
        "/healthz/live" if known => plain(StatusCode::OK, "alive\n".to_owned()),
        "/healthz/ready" if known => {
            let missing = exporter.missing();
            if missing.is_empty() {
                return plain(StatusCode::OK, "ready\n".to_owned());
            }
            plain(StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n")
        }
        _ => {
            let advice = "ask for GET /metrics, /healthz/live or /healthz/ready\n";
            plain(StatusCode::NOT_FOUND, advice.to_owned())
        }
    }
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", text)
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
