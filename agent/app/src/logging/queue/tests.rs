//! A log that is read, one that is not, and one that cannot be written to.

use std::{
    sync::{Arc, mpsc},
    thread,
};

use super::*;

/// More than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);
const LINE: &[u8] = b"a line\n";

/// A log whose every write waits until somebody reads.
struct Pipe {
    written: mpsc::SyncSender<Vec<u8>>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.written.send(bytes.to_vec()).map_err(|_gone| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A queue with its thread, which tells what is missing in words of its own.
fn started(room: usize) -> (Arc<Queue>, mpsc::Receiver<Vec<u8>>) {
    let queue = Arc::new(Queue::new(room));
    let (written, log) = mpsc::sync_channel(0);
    let writer = Arc::clone(&queue);
    thread::spawn(move || {
        let teller = Arc::clone(&writer);
        let tell = move |missing| teller.push(format!("{missing} missing\n").as_bytes());
        writer.write_to(Pipe { written }, tell)
    });
    (queue, log)
}

fn wait_until(is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never happened");
        thread::yield_now();
    }
}

/// Reads until `bytes` have come.
fn read(log: &mpsc::Receiver<Vec<u8>>, bytes: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < bytes {
        read.extend(log.recv_timeout(PATIENCE).unwrap());
    }
    read
}

#[test]
fn what_is_logged_is_written_in_order_and_once() {
    let (queue, log) = started(1 << 20);
    let lines: Vec<_> = (0..10_000).map(|number| format!("line {number}\n")).collect();
    for line in &lines {
        queue.push(line.as_bytes());
    }
    let expected = lines.concat();
    assert_eq!(String::from_utf8(read(&log, expected.len())).unwrap(), expected);
    assert_eq!(queue.dropped(), 0);
}

#[test]
fn a_log_that_nobody_reads_stops_nobody_and_says_afterwards_what_is_missing() {
    let (queue, log) = started(100 * LINE.len());
    queue.push(LINE);
    wait_until(|| queue.lock().is_writing);
    for _ in 0..250 {
        queue.push(LINE);
    }
    assert_eq!(queue.dropped(), 150);
    let told = b"150 missing\n";
    let expected = [LINE.repeat(101), told.to_vec()].concat();
    assert_eq!(read(&log, expected.len()), expected);
    // Of what it was told of once it says no more.
    queue.push(LINE);
    assert_eq!(read(&log, LINE.len()), LINE);
}

#[test]
fn a_flush_waits_until_all_is_written() {
    let (queue, log) = started(1 << 20);
    let reader = thread::spawn(move || read(&log, 1000 * LINE.len()).len());
    for _ in 0..1000 {
        queue.push(LINE);
    }
    queue.flush(PATIENCE);
    let state = queue.lock();
    assert!(state.waiting.is_empty() && !state.is_writing);
    assert_eq!(reader.join().unwrap(), 1000 * LINE.len());
}

#[test]
fn a_flush_does_not_wait_forever_for_a_log_that_nobody_reads() {
    let (queue, _log) = started(1 << 20);
    queue.push(LINE);
    queue.flush(Duration::from_millis(50));
    assert!(queue.lock().is_writing);
}

#[test]
fn what_could_not_be_written_is_missing() {
    let (queue, log) = started(1 << 20);
    drop(log);
    for _ in 0..3 {
        queue.push(LINE);
    }
    wait_until(|| queue.dropped() == 3);
}
