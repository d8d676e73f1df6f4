//! Requests at a steady rate, each on a connection of its own, while something else changes.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::Netns;

/// A steady load: new connections at a constant rate, each for one request and its answer.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    failures: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts the load from inside `netns`. Each client makes a `pause` between two requests.
    pub fn start(netns: &Netns, targets: &[SocketAddr], pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let served = Arc::new(AtomicU64::new(0));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let client = |target: &SocketAddr| {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            let (target, failures) = (*target, Arc::clone(&failures));
            netns.spawn(move || {
                let begin = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    match request(target) {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => {
                            let text = format!("after {:?}: {error:#}", begin.elapsed());
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                        }
                    }
                    thread::sleep(pause);
                }
                Ok(())
            })
        };
        // Four clients for each target, which makes agents pool, share and renew sessions.
        let threads = targets.iter().flat_map(|target| [target; 4]).map(client).collect();
        Self { stop, served, failures, threads }
    }

    /// Returns the failures so far.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the number of requests answered so far.
    pub fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }

    /// Ends the load and returns the number of answered requests. Fails if a request failed.
    pub fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_panic| anyhow::anyhow!("a client panicked"))??;
        }
        let failures = self.failures();
        let served = self.served.load(Ordering::Relaxed);
        let first = failures.first();
        ensure!(failures.is_empty(), "{} of {served} requests failed: {first:?}", failures.len());
        Ok(served)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn request(target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"request").context("send")?;
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).context("receive")?;
    ensure!(answer == *b"request", "the echo differs");
    Ok(())
}
