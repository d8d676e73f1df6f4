//! Asks the agent, with bounds on everything.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
        sockopt::socket_peercred,
    },
};

use crate::protocol::{Answer, Request, receive, send};

/// How long an agent may take to accept: its backlog is full only when it hangs.
const CONNECT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unanswered {
    /// Nobody listens.
    #[error("no agent answers on {path}: {source}")]
    Unreachable {
        /// The socket.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody listens who is not root, and so is not the agent.
    #[error("{0} belongs to a process that is not root, so it is not the agent's")]
    Impostor(String),
    /// The conversation broke off or took too long.
    #[error("the agent at {path} did not answer within {patience:?}: {source}")]
    Broken {
        /// The socket.
        path: String,
        /// How long it was given.
        patience: Duration,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Asks the agent that listens on `socket`. Returns its answer, or an error, within `patience`.
pub fn ask(socket: &Path, request: &Request, patience: Duration) -> Result<Answer, Unanswered> {
    let path = socket.display().to_string();
    let deadline = Instant::now() + patience;
    let stream = reach(socket, deadline.min(Instant::now() + CONNECT))
        .map_err(|source| Unanswered::Unreachable { path: path.clone(), source })?;
    if !socket_peercred(&stream).is_ok_and(|peer| peer.uid.is_root()) {
        return Err(Unanswered::Impostor(path));
    }
    let mut bounded = Bounded { stream, deadline };
    send(&mut bounded, request)
        .and_then(|()| receive(&mut bounded))
        .map_err(|source| Unanswered::Broken { path, patience, source })
}

/// Connects; a full backlog is tried again until the deadline.
fn reach(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match connect(&socket, &address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(Errno::AGAIN | Errno::INTR) if Instant::now() < deadline => thread::sleep(PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A stream whose reads and writes end at the deadline.
struct Bounded {
    stream: UnixStream,
    deadline: Instant,
}

impl Bounded {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

impl Read for Bounded {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buffer)
    }
}

impl Write for Bounded {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
