//! What is logged waits in memory for a thread that writes it, so that a log that nobody reads stops nobody.
//!
//! The log is a pipe as a rule, and whoever reads it may stall: a container runtime that restarts, a full disk. A
//! thread that wrote to it itself would stop then, and with a worker all of its connections. So there is room for a
//! while, and what finds none is counted.

use std::{
    io::{self, Write},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long what was said first waits for more, to be written with it: a busy agent logs thousands of lines a second.
const GATHER: Duration = Duration::from_millis(5);

/// Lines on their way out.
#[derive(Debug)]
pub(super) struct Queue {
    /// Bytes that may wait; as many may be in the hands of the writing thread.
    room: usize,
    state: Mutex<State>,
    /// Told when there is something to be written, or that it is to be written now.
    said: Condvar,
    /// Told when everything is written.
    written: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: Vec<u8>,
    /// How many they are.
    lines: u64,
    is_writing: bool,
    is_hurried: bool,
    /// Lines that found no room, or could not be written.
    dropped: u64,
    /// Those of them that the log itself tells of.
    told: u64,
}

/// What is to be written at once.
struct Batch {
    bytes: Vec<u8>,
    lines: u64,
    /// Lines that are missing behind it.
    missing: u64,
}

// === impl Queue ===

impl Queue {
    pub(super) const fn new(room: usize) -> Self {
        let state = State {
            waiting: Vec::new(),
            lines: 0,
            is_writing: false,
            is_hurried: false,
            dropped: 0,
            told: 0,
        };
        Self { room, state: Mutex::new(state), said: Condvar::new(), written: Condvar::new() }
    }

    /// Puts a line in the queue, if there is room.
    pub(super) fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.waiting.len() + line.len() > self.room {
            state.dropped += 1;
            return;
        }
        let is_first = state.waiting.is_empty();
        state.waiting.extend_from_slice(line);
        state.lines += 1;
        drop(state);
        if is_first {
            self.said.notify_one();
        }
    }

    /// Lines that are missing in the log so far.
    pub(super) fn dropped(&self) -> u64 {
        self.lock().dropped
    }

    /// Writes whatever comes. `tell` is to log that so many lines are missing: it is called when there is room for that
    /// again, so that the line stands where they would.
    pub(super) fn write_to(&self, mut log: impl Write, tell: impl Fn(u64)) -> ! {
        loop {
            let batch = self.take();
            if batch.missing > 0 {
                tell(batch.missing);
            }
            let is_written = log.write_all(&batch.bytes).is_ok();
            self.finished(&batch, is_written);
        }
    }

    /// Waits until everything is written, but no longer than `patience`.
    pub(super) fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        state.is_hurried = true;
        self.said.notify_one();
        while state.is_writing || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let woken = self.written.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn take(&self) -> Batch {
        let state = self.said.wait_while(self.lock(), |state| state.waiting.is_empty());
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let gathered = self.said.wait_timeout_while(state, GATHER, |state| !state.is_hurried);
        let mut state = gathered.unwrap_or_else(PoisonError::into_inner).0;
        let missing = state.dropped - state.told;
        state.told = state.dropped;
        state.is_writing = true;
        let lines = std::mem::take(&mut state.lines);
        Batch { bytes: std::mem::take(&mut state.waiting), lines, missing }
    }

    fn finished(&self, batch: &Batch, is_written: bool) {
        let mut state = self.lock();
        state.is_writing = false;
        if !is_written {
            // Why not, and how far it came, could only be said here.
            state.dropped += batch.lines;
        }
        if state.waiting.is_empty() {
            drop(state);
            self.written.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for &Queue {
    /// One call is one line.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
