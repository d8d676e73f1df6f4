//! The API server over `kubectl proxy`: thousands of small requests, for which kubectl itself is too slow.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;

use super::{Cluster, wait_for};

/// The number of requests at once.
const WORKERS: usize = 12;

/// The proxy, with the administrator's permissions; ends when dropped.
#[derive(Debug)]
pub struct Api {
    proxy: Child,
    socket: PathBuf,
}

/// One connection to the proxy.
#[derive(Debug)]
pub struct Line(BufReader<UnixStream>);

// === impl Api ===

impl Api {
    /// Starts the proxy.
    pub fn open(cluster: &Cluster) -> Result<Self> {
        let name = format!("sluice-api-{}.sock", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let mut command = cluster.program("kubectl");
        command.arg("proxy").arg(format!("--unix-socket={}", socket.display()));
        let proxy = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let api = Self { proxy, socket };
        wait_for("kubectl proxy", Duration::from_secs(20), || Ok(api.line().is_ok()))?;
        Ok(api)
    }

    /// Opens a connection to the proxy.
    pub fn line(&self) -> Result<Line> {
        Ok(Line(BufReader::new(UnixStream::connect(&self.socket)?)))
    }

    /// Calls `work` with each number below `count`, several at once; each worker has a connection of its own.
    pub fn each(
        &self,
        count: usize,
        work: impl Fn(&mut Line, usize) -> Result<()> + Sync,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let worker = || {
            let mut line = self.line()?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                work(&mut line, number).with_context(|| format!("number {number}"))?;
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| {
                worker.join().map_err(|_panic| anyhow!("a worker panicked"))?
            })
        })
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // The proxy may have ended by itself.
        self.proxy.kill().ok();
        self.proxy.wait().ok();
        std::fs::remove_file(&self.socket).ok();
    }
}

// === impl Line ===

impl Line {
    /// Creates an object in the collection at `path` and returns what it has become.
    pub fn create(&mut self, path: &str, object: &Value) -> Result<Value> {
        self.ask("POST", path, "application/json", object)
    }

    /// Changes the object at `path` by a merge patch (RFC 7386).
    pub fn patch(&mut self, path: &str, changes: &Value) -> Result<Value> {
        self.ask("PATCH", path, "application/merge-patch+json", changes)
    }

    /// Deletes the object at `path` at once.
    pub fn delete(&mut self, path: &str) -> Result<Value> {
        let at_once = serde_json::json!({ "gracePeriodSeconds": 0 });
        self.ask("DELETE", path, "application/json", &at_once)
    }

    fn ask(&mut self, method: &str, path: &str, kind: &str, object: &Value) -> Result<Value> {
        let body = object.to_string();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.0.get_mut().write_all(request.as_bytes())?;
        let status = self.text_line()?;
        let mut length = None;
        loop {
            let header = self.text_line()?;
            if header.is_empty() {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = Some(value.trim().parse()?);
            }
        }
        let answer = match length {
            Some(length) => self.bytes(length)?,
            None => self.chunks()?,
        };
        let code = status.split(' ').nth(1).unwrap_or_default();
        let said = String::from_utf8_lossy(&answer);
        ensure!(code.starts_with('2'), "{method} {path}: {status}: {said}");
        Ok(serde_json::from_slice(&answer)?)
    }

    fn chunks(&mut self) -> Result<Vec<u8>> {
        let mut whole = Vec::new();
        loop {
            let length = usize::from_str_radix(self.text_line()?.trim(), 16)?;
            let chunk = self.bytes(length)?;
            // Each chunk, the empty last one too, ends with an empty line.
            self.text_line()?;
            if chunk.is_empty() {
                return Ok(whole);
            }
            whole.extend(chunk);
        }
    }

    fn bytes(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.0.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn text_line(&mut self) -> Result<String> {
        let mut text = String::new();
        ensure!(self.0.read_line(&mut text)? > 0, "the API server has hung up");
        Ok(text.trim_end().to_owned())
    }
}
