//! Runs commands in the agents' containers.

use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::AttachParams};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{AgentPod, AskError, Operator, rights};
use crate::client::innermost;

/// How long a command may take, including its connection.
const PATIENCE: Duration = Duration::from_secs(20);
/// How many nodes are asked at the same time.
const AT_ONCE: usize = 16;
/// The longest output in bytes: no node may fill the operator's memory.
const LONGEST: u64 = 64 << 20;
const BUFFER: usize = 64 << 10;

/// What a command printed.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
    /// When the command was asked for and when its answer was complete, by this machine's clock.
    pub between: (SystemTime, SystemTime),
}

impl Operator {
    /// Runs a command in a container of each of these pods, several at a time. Returns the answers in the order of the
    /// pods.
    pub async fn run(
        &self,
        agents: &[AgentPod],
        container: &str,
        command: &[&str],
    ) -> Vec<Result<Ran, AskError>> {
        let asked = agents.iter().map(|agent| self.run_one(&agent.name, container, command));
        stream::iter(asked).buffered(AT_ONCE).collect().await
    }

    async fn run_one(&self, pod: &str, container: &str, command: &[&str]) -> Result<Ran, AskError> {
        let start = SystemTime::now();
        let attempt = self.attempt(pod, container, command);
        let failed = |reason: String| AskError::Exec { pod: pod.to_owned(), reason };
        match tokio::time::timeout(PATIENCE, attempt).await {
            Ok(outcome) => {
                let (output, errors) = outcome?;
                Ok(Ran { output, errors, between: (start, SystemTime::now()) })
            }
            Err(_elapsed) => Err(failed(format!(
                "no answer within {PATIENCE:?}: see `kubectl -n {} describe pod {pod}`, and whether the API server \
                 reaches its node",
                self.namespace
            ))),
        }
    }

    async fn attempt(
        &self,
        pod: &str,
        container: &str,
        command: &[&str],
    ) -> Result<(String, String), AskError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let parameters = AttachParams::default()
            .container(container)
            .stdin(false)
            .stdout(true)
            .stderr(true)
            .max_stdout_buf_size(BUFFER);
        let failed = |reason: String| AskError::Exec { pod: pod.to_owned(), reason };
        let started = pods.exec(pod, command.iter().copied(), &parameters).await;
        let mut process = started.map_err(|error| self.not_run(pod, &error))?;
        let streams = process.stdout().zip(process.stderr());
        let (stdout, stderr) =
            streams.ok_or_else(|| failed("BUG: the command has no output".to_owned()))?;
        let status = process.take_status();
        let (output, errors) = tokio::join!(read(stdout), read(stderr));
        let output = output.map_err(failed)?;
        if output.is_empty()
            && let Some(status) = status
            && let Some(status) = status.await
            && status.reason.as_deref() != Some("NonZeroExitCode")
            && status.status.as_deref() != Some("Success")
        {
            return Err(failed(status.message.unwrap_or_default()));
        }
        Ok((output, errors.unwrap_or_default()))
    }

    fn not_run(&self, pod: &str, error: &kube::Error) -> AskError {
        let failed = |reason: String| AskError::Exec { pod: pod.to_owned(), reason };
        if let kube::Error::UpgradeConnection(_) = error {
            return failed(format!(
                "the API server does not run commands in pods for this client ({}): is there a proxy in between that \
                 does not pass WebSockets?",
                innermost(error)
            ));
        }
        let needs = rights::in_namespace("get and create pods/exec", &self.namespace);
        let fault = self.fault("asking an agent", &needs, error);
        // The API server answers, but the node behind it does not.
        if let AskError::Refused { reason, .. } = fault { failed(reason) } else { fault }
    }
}

async fn read(stream: impl AsyncRead + Unpin) -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut stream = stream.take(LONGEST);
    stream
        .read_to_end(&mut bytes)
        .await
        .map_err(|error| format!("its answer broke off: {error}"))?;
    if stream.limit() == 0 {
        return Err(format!("its answer is longer than {LONGEST} bytes"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
