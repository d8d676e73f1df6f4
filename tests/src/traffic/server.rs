//! A server of one of several kinds, on one thread inside a pod, for any number of connections.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::{Tally, bytes};
use crate::{Family, Netns};

/// The length of the accept queue; Linux caps it at `net.core.somaxconn`, 4096 by default.
const BACKLOG: i32 = 4096;

/// What a server does with a connection.
#[derive(Clone, Debug)]
pub enum Service {
    /// Returns what it receives.
    Echo,
    /// Speaks first, like SMTP or `MySQL`: sends one line, then echoes.
    Greet(String),
    /// Answers any HTTP request with this body and the client's address in `X-Client`.
    Http(String),
    /// Sends without end, to a client that may not read.
    Stream,
    /// Reads everything and sends nothing.
    Sink,
    /// Never reads.
    Stall,
    /// Compares the addresses that the client claims in its first line with those it sees.
    Addresses,
    /// Keeps one line that the client sends, and answers with its own name.
    Guestbook {
        /// The server's name.
        name: String,
        /// The lines that clients have sent.
        guests: Arc<Mutex<Vec<String>>>,
    },
    /// Answers as the server of an [`super::Exchange`].
    Bytes(Arc<Tally>),
}

/// One accepted connection as the application saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The peer that `accept` reported.
    pub peer: SocketAddr,
    /// The peer that `getpeername` reported; the unspecified address if it failed.
    pub peer_name: SocketAddr,
    /// The server's own address.
    pub local: SocketAddr,
}

/// A running server; dropping it ends it and its connections.
#[derive(Debug)]
pub struct Server {
    accepted: Arc<Mutex<Vec<Accepted>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

// === impl Server ===

impl Server {
    /// Listens on `port` of every address of `netns`, both families.
    pub fn on_port(netns: &Netns, port: u16, service: Service) -> Result<Self> {
        let everywhere = Family::BOTH.map(|family| SocketAddr::new(family.unspecified(), port));
        Self::start(netns, &everywhere, service)
    }

    /// Listens as [`Server::on_port`] does, for connections that come by `device` alone.
    pub fn on_device(netns: &Netns, device: &str, port: u16, service: Service) -> Result<Self> {
        let listen_there = |family: Family| {
            let listener = listen(SocketAddr::new(family.unspecified(), port))?;
            SockRef::from(&listener).bind_device(Some(device.as_bytes()))?;
            Ok(listener)
        };
        let listeners = netns.run(|| Family::BOTH.map(listen_there).into_iter().collect())?;
        Ok(Self::over(netns, listeners, service))
    }

    /// Listens on `addresses` of `netns`; returns once connections would be accepted.
    pub fn start(netns: &Netns, addresses: &[SocketAddr], service: Service) -> Result<Self> {
        let listeners = netns.run(|| addresses.iter().copied().map(listen).collect())?;
        Ok(Self::over(netns, listeners, service))
    }

    fn over(netns: &Netns, listeners: Vec<std::net::TcpListener>, service: Service) -> Self {
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = oneshot::channel();
        let record = Arc::clone(&accepted);
        let thread = netns.spawn(move || serve(listeners, &service, &record, stopped));
        Self { accepted, stop: Some(stop), thread: Some(thread) }
    }

    /// Returns every connection accepted so far.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the latest connection. It may arrive a moment after the client believes it is connected.
    pub fn last_accepted(&self) -> Result<Accepted> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            if let Some(last) = self.accepted().last() {
                return Ok(*last);
            }
            ensure!(Instant::now() < deadline, "the server has accepted nothing");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            stop.send(()).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("bind {address}"))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn serve(
    listeners: Vec<std::net::TcpListener>,
    service: &Service,
    record: &Arc<Mutex<Vec<Accepted>>>,
    stopped: oneshot::Receiver<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        for listener in listeners {
            let listener = TcpListener::from_std(listener)?;
            tokio::spawn(accept_all(listener, service.clone(), Arc::clone(record)));
        }
        // A message or a dropped sender: both mean the end.
        stopped.await.ok();
        Ok(())
    })
}

async fn accept_all(listener: TcpListener, service: Service, record: Arc<Mutex<Vec<Accepted>>>) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of descriptors: give connections time to end.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let Ok(local) = stream.local_addr() else { continue };
        let nobody = SocketAddr::new(IpAddr::from([0; 4]), 0);
        let peer_name = stream.peer_addr().unwrap_or(nobody);
        let accepted = Accepted { peer, peer_name, local };
        record.lock().unwrap_or_else(PoisonError::into_inner).push(accepted);
        let service = service.clone();
        tokio::spawn(async move {
            // A client that resets ends only its own connection.
            handle(stream, &service, accepted).await.ok();
        });
    }
}

async fn handle(mut stream: TcpStream, service: &Service, accepted: Accepted) -> Result<()> {
    stream.set_nodelay(true)?;
    match service {
        Service::Echo => echo(&mut stream).await,
        Service::Greet(line) => {
            stream.write_all(format!("{line}\r\n").as_bytes()).await?;
            echo(&mut stream).await
        }
        Service::Http(body) => http(stream, body, accepted.peer).await,
        Service::Stream => {
            let block = vec![b's'; 1 << 16];
            loop {
                stream.write_all(&block).await?;
            }
        }
        Service::Sink => {
            let mut buffer = vec![0; 1 << 16];
            while stream.read(&mut buffer).await? > 0 {}
            Ok(())
        }
        Service::Stall => {
            // Waits until the runtime ends with the server.
            std::future::pending::<()>().await;
            Ok(())
        }
        Service::Addresses => {
            let mut stream = BufReader::new(stream);
            let mut claim = String::new();
            stream.read_line(&mut claim).await?;
            let seen = format!("{} {}", accepted.local, accepted.peer);
            let right = claim.trim_end() == seen && accepted.peer == accepted.peer_name;
            let answer = if right { "ok\n".to_owned() } else { format!("{seen}\n") };
            Ok(stream.get_mut().write_all(answer.as_bytes()).await?)
        }
        Service::Guestbook { name, guests } => {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            stream.read_until(b'\n', &mut line).await?;
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            guests.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            Ok(stream.get_mut().write_all(format!("{name}\n").as_bytes()).await?)
        }
        Service::Bytes(tally) => bytes::serve(stream, tally).await,
    }
}

async fn echo(stream: &mut TcpStream) -> Result<()> {
    let mut buffer = vec![0; 1 << 14];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(buffer.get(..length).unwrap_or_default()).await?;
    }
}

async fn http(stream: TcpStream, body: &str, client: SocketAddr) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Client: {client}\r\n\r\n{body}",
            body.len()
        );
        stream.get_mut().write_all(answer.as_bytes()).await?;
    }
}
