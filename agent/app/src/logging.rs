//! What the program writes: the log, a command's result, and why a command failed.

mod queue;

use std::{
    convert::Infallible,
    io::{self, Write},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use self::queue::Queue;

/// Bytes that wait for a log that is not read: some 7,000 lines.
const ROOM: usize = 4 << 20;
/// How long a program that ends waits for its log to be taken.
const FLUSH: Duration = Duration::from_secs(1);

static QUEUE: Queue = Queue::new(ROOM);
/// Whether there is a log; otherwise nobody writes what is in the queue.
static HAS_STARTED: AtomicBool = AtomicBool::new(false);

/// Has the log written to its end when this is dropped, however the program ends.
pub(crate) struct Flushed;

/// Starts logging to standard error, as JSON when `SLUICE_LOG_FORMAT=json`. `level` holds unless
/// `SLUICE_LOG` gives directives of its own, such as `info,access=off`.
pub(crate) fn start(level: &str) -> anyhow::Result<()> {
    let filter = match std::env::var("SLUICE_LOG") {
        Ok(directives) => EnvFilter::try_new(directives)?,
        Err(_) => EnvFilter::try_new(level)?,
    };
    let writer = std::thread::Builder::new().name("log".to_owned());
    writer.spawn(write).context("starting the thread that writes the log")?;
    HAS_STARTED.store(true, Ordering::Relaxed);
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| &QUEUE);
    if std::env::var("SLUICE_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_ansi(false).init();
    }
    Ok(())
}

fn write() -> Infallible {
    QUEUE.write_to(io::stderr(), |lines| {
        tracing::warn!(lines, "lines are missing here: nobody took the log");
    })
}

/// Lines that are missing in the log, because nobody took them.
pub(crate) fn dropped() -> u64 {
    QUEUE.dropped()
}

/// Tells the user why a command failed.
pub(crate) fn complain(text: &str) {
    let line = format!("{text}\n");
    if HAS_STARTED.load(Ordering::Relaxed) {
        // Behind all that was logged; and an agent that has failed does not wait for somebody to hear of it.
        return QUEUE.push(line.as_bytes());
    }
    // There is nowhere left to say that standard error is closed.
    drop(io::stderr().write_all(line.as_bytes()));
}

/// Prints a command's result.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    Ok(output.flush()?)
}

impl Drop for Flushed {
    fn drop(&mut self) {
        if HAS_STARTED.load(Ordering::Relaxed) {
            QUEUE.flush(FLUSH);
        }
    }
}
