//! New connections at a steady rate, whatever happens, and a line for everything that goes wrong.

use std::{
    io::Write as _,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which connections are opened, and how often.
#[derive(Clone, Debug)]
pub struct Knocking {
    /// The address of an echo server.
    pub target: SocketAddr,
    /// The text that the server has to send back.
    pub text: String,
    /// New connections per second.
    pub rate: u32,
    /// How long a connection stays open between its two exchanges; if zero, there is only one exchange.
    pub hold: Duration,
    /// For how long connections are opened.
    pub lasts: Duration,
}

#[derive(Debug, Default)]
struct Count {
    served: AtomicU64,
    failed: AtomicU64,
}

/// Opens connections as `knocking` says, each in its own task. Prints `failed at MS: why` for each that fails, where MS
/// is the wall clock in milliseconds when it was opened. Prints the sums once a second and at the end.
pub fn knock(knocking: &Knocking) -> Result<()> {
    crate::privilege::raise_descriptor_limit()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (count, end) = (Arc::new(Count::default()), Instant::now() + knocking.lasts);
        let mut knocks = interval(Duration::from_secs(1) / knocking.rate);
        // Keeps the rate on average, even if the machine was busy for a moment.
        knocks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut report = interval(Duration::from_secs(1));
        let mut open = tokio::task::JoinSet::new();
        while Instant::now() < end {
            tokio::select! {
                _ = knocks.tick() => {
                    let (count, knocking) = (Arc::clone(&count), knocking.clone());
                    open.spawn(async move { count.take(once(&knocking).await) });
                }
                _ = report.tick() => count.say("so far"),
                Some(_) = open.join_next() => {}
            }
        }
        while open.join_next().await.is_some() {}
        count.say("in all");
        Ok(())
    })
}

async fn once(knocking: &Knocking) -> Result<(), (SystemTime, anyhow::Error)> {
    let opened = SystemTime::now();
    let exchange = async {
        let mut stream = timeout(PATIENCE, TcpStream::connect(knocking.target))
            .await
            .context("connect: no answer")?
            .context("connect")?;
        timeout(PATIENCE, echo(&mut stream, &knocking.text)).await.context("no echo")??;
        if !knocking.hold.is_zero() {
            sleep(knocking.hold).await;
            let again = timeout(PATIENCE, echo(&mut stream, &knocking.text)).await;
            again.context("no second echo")?.context("after holding")?;
        }
        Ok(())
    };
    exchange.await.map_err(|error| (opened, error))
}

async fn echo(stream: &mut TcpStream, text: &str) -> Result<()> {
    stream.write_all(text.as_bytes()).await.context("send")?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await.context("receive")?;
    anyhow::ensure!(answer == text.as_bytes(), "another answer");
    Ok(())
}

// === impl Count ===

impl Count {
    fn take(&self, outcome: Result<(), (SystemTime, anyhow::Error)>) {
        match outcome {
            Ok(()) => {
                self.served.fetch_add(1, Relaxed);
            }
            Err((opened, error)) => {
                self.failed.fetch_add(1, Relaxed);
                let at = opened.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
                say(&format!("failed at {at}: {error:#}"));
            }
        }
    }

    fn say(&self, when: &str) {
        say(&format!(
            "{when}: served {} failed {}",
            self.served.load(Relaxed),
            self.failed.load(Relaxed)
        ));
    }
}

fn say(line: &str) {
    // An error means that nobody reads this any more: the connections go on.
    writeln!(std::io::stdout(), "{line}").ok();
}
