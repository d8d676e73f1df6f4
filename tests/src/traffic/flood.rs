//! Very many short connections from few ports, each checking who the server believes it talks to.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::pattern::Pattern;
use crate::Netns;

const PATIENCE: Duration = Duration::from_secs(10);
/// How often a connection is tried: ports come free again as earlier connections end.
const TRIES: usize = 50;

/// What a flood found.
#[derive(Debug, Default)]
pub struct FloodResult {
    /// Connections on which the server saw the addresses that the client has.
    pub right: AtomicU64,
    /// Connections on which the server saw other addresses.
    pub wrong: AtomicU64,
    /// Connections whose own `getpeername` did not give the address that was dialled.
    pub wrong_peer_name: AtomicU64,
    /// Connections that failed.
    pub failed: AtomicU64,
    /// How often no port was free and the connection was tried again.
    pub exhausted: AtomicU64,
}

/// Makes `total` connections from `netns` to random ones of `targets`, which run
/// [`super::Service::Addresses`]. About half of the connections end by a reset, which frees their
/// port at once; the others end cleanly, which lets agents reuse their sessions.
pub fn flood(
    netns: &Netns,
    targets: &[SocketAddr],
    total: u64,
    threads: u64,
) -> Result<FloodResult> {
    let result = FloodResult::default();
    let left = AtomicU64::new(total);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|seed| {
                let (result, left) = (&result, &left);
                scope.spawn(move || netns.run(|| work(targets, seed, left, result)))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or(Ok(())))
    })?;
    Ok(result)
}

fn work(targets: &[SocketAddr], seed: u64, left: &AtomicU64, result: &FloodResult) -> Result<()> {
    let mut random = Pattern::new(seed.wrapping_mul(7919) + 1);
    let count = u64::try_from(targets.len())?;
    while left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    {
        let index = usize::try_from(random.below(count))?;
        let target = *targets.get(index).context("no targets")?;
        match one(target, random.below(2) == 0, result) {
            Ok(true) => result.right.fetch_add(1, Ordering::Relaxed),
            Ok(false) => result.wrong.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                if result.failed.fetch_add(1, Ordering::Relaxed) < 5 {
                    crate::cleanup::report(&format!("flood to {target}: {error:#}"));
                }
                0
            }
        };
    }
    Ok(())
}

fn one(target: SocketAddr, reset: bool, result: &FloodResult) -> Result<bool> {
    let mut stream = connect(target, result)?;
    let local = stream.local_addr()?;
    if stream.peer_addr()? != target {
        result.wrong_peer_name.fetch_add(1, Ordering::Relaxed);
    }
    stream.write_all(format!("{target} {local}\n").as_bytes()).context("send")?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).context("receive")?;
    if reset {
        SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    }
    let right = answer.trim_end() == "ok";
    if !right && result.wrong.load(Ordering::Relaxed) < 5 {
        crate::cleanup::report(&format!("dialled {target} from {local}, server saw {answer:?}"));
    }
    Ok(right)
}

fn connect(target: SocketAddr, result: &FloodResult) -> Result<TcpStream> {
    let mut last = None;
    for _ in 0..TRIES {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        match socket.connect_timeout(&target.into(), PATIENCE) {
            Ok(()) => {
                let stream = TcpStream::from(socket);
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                result.exhausted.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
                last = Some(error);
            }
            Err(error) => return Err(error).context("connect"),
        }
    }
    Err(last.map_or_else(|| anyhow::anyhow!("never tried"), Into::into)).context("no free port")
}
