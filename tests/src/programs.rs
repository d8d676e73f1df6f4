//! The programs that `sluice-lab` runs inside pods: ordinary ones with sockets, which know nothing
//! of the mesh.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _, stdout},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

/// How many connections may be in the process of opening at one time.
const OPENING: usize = 200;
const PATIENCE: Duration = Duration::from_secs(20);

/// Sends `text` to an echo server and prints what comes back.
pub fn send(target: SocketAddr, text: &str) -> Result<()> {
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&target, patience).context("connect")?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer)?;
    Ok(stdout().write_all(&answer)?)
}

/// Echoes what it receives, on as many connections as the machine grants one process.
pub fn echo_server(port: u16) -> Result<()> {
    crate::privilege::raise_descriptor_limit()?;
    let listener = listen(port, 4096)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        say(&format!("listening on port {port}"))?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                // A client that resets ends only its own connection.
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    let received = buffer.get(..length).unwrap_or_default();
                    if stream.write_all(received).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}

/// Listens on one socket for both families, as many servers do.
fn listen(port: u16, backlog: i32) -> Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from(([0_u16; 8], port)).into())?;
    socket.listen(backlog)?;
    Ok(socket.into())
}

/// Serves SMTP as far as a client needs it to deliver a letter (RFC 5321), and prints every line of
/// every letter with the address that `getpeername` gave.
pub fn mail_server(port: u16) -> Result<()> {
    let listener = listen(port, 128)?;
    say(&format!("listening on port {port}"))?;
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            // A client that goes away ends only its own session.
            receive_mail(&stream).ok();
        });
    }
    Ok(())
}

fn receive_mail(stream: &TcpStream) -> Result<()> {
    let peer = stream.peer_addr()?;
    let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let mut writer = stream;
    writer.write_all(b"220 mail.example.org ESMTP\r\n")?;
    let mut lines = BufReader::new(stream).lines();
    let mut in_letter = false;
    while let Some(line) = lines.next().transpose()? {
        let answer: &[u8] = match line.as_str() {
            "." if in_letter => {
                in_letter = false;
                b"250 accepted\r\n"
            }
            text if in_letter => {
                say(&format!("mail from {peer}: {text}"))?;
                continue;
            }
            "DATA" => {
                in_letter = true;
                b"354 go on\r\n"
            }
            "QUIT" => {
                writer.write_all(b"221 bye\r\n")?;
                return Ok(());
            }
            _ => b"250 ok\r\n",
        };
        writer.write_all(answer)?;
    }
    Ok(())
}

/// Opens `count` connections, echoes on each, holds them all for `hold`, and echoes again.
pub fn hold(target: SocketAddr, count: usize, hold: Duration) -> Result<()> {
    crate::privilege::check()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let start = Instant::now();
        let mut opening = tokio::task::JoinSet::new();
        let mut open = Vec::with_capacity(count);
        let mut failed = Failures::default();
        for _ in 0..count {
            if opening.len() >= OPENING {
                collect(opening.join_next().await, &mut open, &mut failed);
            }
            opening.spawn(timeout(PATIENCE, connect(target)));
        }
        while !opening.is_empty() {
            collect(opening.join_next().await, &mut open, &mut failed);
        }
        say(&format!("holding {} of {count} after {:?}", open.len(), start.elapsed()))?;
        tokio::time::sleep(hold).await;
        for stream in &mut open {
            match timeout(PATIENCE, echo(stream)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => failed.add(&error),
                Err(elapsed) => failed.add(&elapsed.into()),
            }
        }
        say(&format!("done: {} failed{}", failed.count, failed.first))
    })
}

#[derive(Default)]
struct Failures {
    count: usize,
    first: String,
}

impl Failures {
    fn add(&mut self, error: &anyhow::Error) {
        self.count += 1;
        if self.first.is_empty() {
            self.first = format!(", the first because {error:#}");
        }
    }
}

type Opened = Result<
    Result<Result<tokio::net::TcpStream>, tokio::time::error::Elapsed>,
    tokio::task::JoinError,
>;

fn collect(opened: Option<Opened>, open: &mut Vec<tokio::net::TcpStream>, failed: &mut Failures) {
    match opened {
        Some(Ok(Ok(Ok(stream)))) => open.push(stream),
        Some(Ok(Ok(Err(error)))) => failed.add(&error),
        Some(Ok(Err(elapsed))) => failed.add(&elapsed.into()),
        Some(Err(panicked)) => failed.add(&panicked.into()),
        None => {}
    }
}

async fn connect(target: SocketAddr) -> Result<tokio::net::TcpStream> {
    let mut stream = tokio::net::TcpStream::connect(target).await.context("connect")?;
    echo(&mut stream).await?;
    Ok(stream)
}

async fn echo(stream: &mut tokio::net::TcpStream) -> Result<()> {
    let text = *b"0123456789abcdef0123456789abcdef";
    stream.write_all(&text).await.context("send")?;
    let mut answer = [0_u8; 32];
    stream.read_exact(&mut answer).await.context("receive")?;
    anyhow::ensure!(answer == text, "the echo differs");
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}
