//! Asks an agent over its Unix socket.

use std::path::Path;

use anyhow::{Context, ensure};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, body::Bytes, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// Returns the body of `GET path`.
pub(crate) async fn get(socket: &Path, path: &str) -> anyhow::Result<Bytes> {
    let stream = UnixStream::connect(socket).await.with_context(|| {
        format!(
            "no agent answers on {}: is it running on this node, and are you root? (--socket names another, \
             --kubeconfig a cluster)",
            socket.display()
        )
    })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::get(path).header(HOST, "agent").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await.context("asking the agent")?;
    let status = response.status();
    let body =
        response.into_body().collect().await.context("reading the agent's answer")?.to_bytes();
    driver.abort();
    ensure!(status.is_success(), "the agent answered {status}: {}", String::from_utf8_lossy(&body));
    Ok(body)
}
