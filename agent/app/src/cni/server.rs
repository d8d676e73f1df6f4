//! The plugin's socket: one question per connection, from root only.

use std::{io, sync::Arc, time::Duration};

use sluice_cni::protocol::{Answer, Request, body_length, encode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{Instant, timeout},
};

use super::Desk;

/// Questions that are answered at the same time; more wait in the backlog. A Kubernetes node has 110 pods.
const AT_ONCE: usize = 128;
/// How long a caller may take to ask.
const ASKING: Duration = Duration::from_secs(2);
/// How long any question may take from end to end.
const LONGEST: Duration = Duration::from_secs(12);

/// Serves until the task is ended.
pub(crate) async fn serve(listener: UnixListener, desk: Arc<Desk>) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let desk = Arc::clone(&desk);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, &desk).await {
                        tracing::debug!(%error, "a caller on the plugin's socket went away");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accepting on the plugin's socket");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, desk: &Desk) -> io::Result<()> {
    // The socket's mode keeps others out already; this also stops those to whom a descriptor was passed on.
    if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0) {
        tracing::warn!("refused a caller on the plugin's socket that is not root");
        return Ok(());
    }
    let body = timeout(ASKING, question(&mut stream)).await??;
    let answer = match serde_json::from_slice::<Request>(&body) {
        Ok(request) => logged(request, desk).await?,
        Err(error) => Answer::NotUnderstood {
            reason: format!("the agent is {}, and does not understand: {error}", crate_version()),
        },
    };
    timeout(ASKING, stream.write_all(&encode(&answer)?)).await?
}

async fn question(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).await?;
    let mut body = vec![0; body_length(header)?];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

async fn logged(request: Request, desk: &Desk) -> io::Result<Answer> {
    let (command, attachment) = match &request {
        Request::Add(attachment) => ("ADD", Some(attachment.clone())),
        Request::Del(attachment) => ("DEL", Some(attachment.clone())),
        Request::Check(attachment) => ("CHECK", Some(attachment.clone())),
        Request::Status => ("STATUS", None),
        Request::Entry { .. } => ("ENTRY", None),
        Request::Gc { .. } => ("GC", None),
    };
    let start = Instant::now();
    let answer = timeout(LONGEST, desk.answer(request)).await?;
    let took_ms = start.elapsed().as_millis();
    let Some(attachment) = attachment else {
        tracing::debug!(command, ?answer, took_ms, "the CNI plugin was answered");
        return Ok(answer);
    };
    let container = &attachment.id.container;
    let pod = attachment.pod.map(|pod| format!("{}/{}", pod.namespace, pod.name));
    let pod = pod.unwrap_or_default();
    match &answer {
        Answer::TryAgain { reason } | Answer::Amiss { reason } => {
            tracing::warn!(command, container, pod, reason, took_ms, "the CNI plugin was put off");
        }
        Answer::Captured | Answer::Outside | Answer::Done | Answer::NotUnderstood { .. } => {
            tracing::info!(
                command,
                container,
                pod,
                ?answer,
                took_ms,
                "the CNI plugin was answered"
            );
        }
    }
    Ok(answer)
}

fn crate_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
