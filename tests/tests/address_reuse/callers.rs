//! Everybody calls everybody, and what came of each call is recorded.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use anyhow::Result;
use sluice_tests::Family;

use crate::houses::{Dice, Houses, PORT, Tenant, lock};

/// How long a caller waits for an answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many calls go to one address in a row: sessions are then used again and resumed.
const IN_A_ROW: usize = 3;

/// One connection that was tried.
pub(crate) struct Call {
    /// What the client says: its name and the number of the call.
    pub(crate) line: String,
    pub(crate) client: Arc<Tenant>,
    /// The client's own address; `None` if not even its agent was reached.
    pub(crate) source: Option<SocketAddr>,
    pub(crate) target: SocketAddr,
    pub(crate) begun: SystemTime,
    pub(crate) ended: SystemTime,
    /// The tenant of the target's address, if it was the same before and after the call.
    pub(crate) there: Option<Arc<Tenant>>,
    /// The name that the answer gave.
    pub(crate) answer: Option<String>,
}

/// All calls.
#[derive(Default)]
pub(crate) struct Calls {
    made: Mutex<Vec<Call>>,
    numbers: AtomicUsize,
}

impl Calls {
    /// Calls from anywhere to anywhere until `over`.
    pub(crate) fn keep_calling(
        &self,
        houses: &Houses<'_>,
        mut dice: Dice,
        over: &AtomicBool,
    ) -> Result<()> {
        while !over.load(Ordering::Relaxed) {
            let (from, mut to) = (dice.below(houses.count()), dice.below(houses.count()));
            if !houses.are_apart(from, to) && dice.below(3) > 0 {
                // Prefers the other node, whose pods the client's agent hears of late.
                to = (to + houses.count() / 2) % houses.count();
            }
            let family = if dice.below(2) == 0 { Family::V4 } else { Family::V6 };
            if from != to {
                for _ in 0..IN_A_ROW {
                    self.call(houses, from, to, family)?;
                }
            }
        }
        Ok(())
    }

    /// Calls once, unless somebody is moving just now. Returns who answered.
    pub(crate) fn call(
        &self,
        houses: &Houses<'_>,
        from: usize,
        to: usize,
        family: Family,
    ) -> Result<Option<String>> {
        let (Some(client), Some(server)) = (houses.tenant(from), houses.tenant(to)) else {
            // Nothing to do until they have moved in.
            std::thread::sleep(Duration::from_millis(5));
            return Ok(None);
        };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let line = format!("{} {number}", client.name);
        let target = server.pod.at(family, PORT);
        let begun = SystemTime::now();
        let (source, answer) = client.pod.run(|| Ok(speak(target, &line)))?;
        let (answer, ended) = (answer.ok(), SystemTime::now());
        let after = houses.tenant(to);
        let there = after.filter(|after| Arc::ptr_eq(after, &server));
        let answered = answer.clone();
        lock(&self.made).push(Call { line, client, source, target, begun, ended, there, answer });
        Ok(answered)
    }

    pub(crate) fn made(self) -> Vec<Call> {
        self.made.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn speak(target: SocketAddr, line: &str) -> (Option<SocketAddr>, io::Result<String>) {
    let mut stream = match TcpStream::connect_timeout(&target, PATIENCE) {
        Ok(stream) => stream,
        Err(error) => return (None, Err(error)),
    };
    (stream.local_addr().ok(), converse(&mut stream, line))
}

fn converse(stream: &mut TcpStream, line: &str) -> io::Result<String> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim_end().to_owned())
}
