//! A blocking client connection: connects, asks, and reports how it was refused.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Netns;

/// How long any step of a probe may take before it counts as a hang.
const PATIENCE: Duration = Duration::from_secs(10);

/// An open connection from inside a pod.
#[derive(Debug)]
pub struct Probe {
    stream: TcpStream,
}

/// How an attempt failed.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The kind of the error that the application got.
    pub kind: ErrorKind,
    /// How long it took until the application knew of it.
    pub after: Duration,
}

// === impl Probe ===

impl Probe {
    /// Connects from inside `netns`.
    pub fn connect(netns: &Netns, target: SocketAddr) -> Result<Self> {
        netns.run(|| {
            let stream = TcpStream::connect_timeout(&target, PATIENCE)
                .with_context(|| format!("connect to {target}"))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            Ok(Self { stream })
        })
    }

    /// Wraps a connection that a test has made in its own way.
    pub fn from_stream(stream: TcpStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// Returns the client's own address, as `getsockname` has it.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    /// Returns the peer, as `getpeername` has it.
    pub fn peer(&self) -> Result<SocketAddr> {
        Ok(self.stream.peer_addr()?)
    }

    /// Returns the connection itself.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends `text` to an echo server and checks that it comes back.
    pub fn echo(&mut self, text: &[u8]) -> Result<()> {
        self.stream.write_all(text).context("send")?;
        let mut answer = vec![0; text.len()];
        self.stream.read_exact(&mut answer).context("receive")?;
        ensure!(answer == text, "the echo differs from what was sent");
        Ok(())
    }

    /// Reads one line that the server sends of its own accord.
    pub fn read_line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        let mut byte = [0_u8; 1];
        while !line.ends_with(b"\n") {
            if self.stream.read(&mut byte).context("receive")? == 0 {
                break;
            }
            line.extend_from_slice(&byte);
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// Waits until the other side ends the connection. Returns how long that took.
    pub fn wait_for_cut(&mut self, patience: Duration) -> Result<Duration> {
        let start = Instant::now();
        self.stream.set_read_timeout(Some(patience))?;
        let mut buffer = [0_u8; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(start.elapsed()),
                Ok(_) => ensure!(start.elapsed() < patience, "still alive after {patience:?}"),
                Err(error) if is_timeout(error.kind()) => bail!("still alive after {patience:?}"),
                Err(_) => return Ok(start.elapsed()),
            }
        }
    }

    /// Connects and echoes. Returns how long that took or how it was refused; fails if it hangs.
    pub fn attempt(netns: &Netns, target: SocketAddr) -> Result<Result<Duration, Refusal>> {
        netns.run(|| {
            let start = Instant::now();
            let outcome = TcpStream::connect_timeout(&target, PATIENCE).and_then(|mut stream| {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(b"ping")?;
                let mut answer = [0_u8; 4];
                stream.read_exact(&mut answer)
            });
            let after = start.elapsed();
            match outcome {
                Ok(()) => Ok(Ok(after)),
                Err(error) if is_timeout(error.kind()) => {
                    bail!("neither served nor refused within {PATIENCE:?}")
                }
                Err(error) => Ok(Err(Refusal { kind: error.kind(), after })),
            }
        })
    }

    /// Fails unless an echo server at `target` answers.
    pub fn ensure_served(netns: &Netns, target: SocketAddr) -> Result<()> {
        match Self::attempt(netns, target)? {
            Ok(_) => Ok(()),
            Err(refusal) => bail!("{target} should have been served, but: {refusal:?}"),
        }
    }

    /// Fails unless the connection to `target` is refused without a hang. Returns how it was refused.
    pub fn ensure_refused(netns: &Netns, target: SocketAddr) -> Result<Refusal> {
        match Self::attempt(netns, target)? {
            Ok(_) => bail!("{target} should have been refused, but it answered"),
            Err(refusal) => Ok(refusal),
        }
    }

    /// Waits until [`Self::ensure_served`] holds, for changes that take effect shortly. Returns how long that took.
    pub fn wait_until_served(
        netns: &Netns,
        target: SocketAddr,
        patience: Duration,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            match Self::ensure_served(netns, target) {
                Ok(()) => return Ok(start.elapsed()),
                Err(error) if start.elapsed() > patience => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    /// Waits until [`Self::ensure_refused`] holds, for changes that take effect shortly. Returns how long that took.
    pub fn wait_until_refused(
        netns: &Netns,
        target: SocketAddr,
        patience: Duration,
    ) -> Result<Duration> {
        let start = Instant::now();
        loop {
            match Self::ensure_refused(netns, target) {
                Ok(_) => return Ok(start.elapsed()),
                Err(error) if start.elapsed() > patience => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// Makes a socket of the given protocol inside `netns`, not yet connected.
pub fn unconnected(netns: &Netns, domain: Domain, protocol: Protocol) -> Result<Socket> {
    netns.run(|| Ok(Socket::new(domain, Type::STREAM, Some(protocol))?))
}

fn is_timeout(kind: ErrorKind) -> bool {
    kind == ErrorKind::WouldBlock || kind == ErrorKind::TimedOut
}
