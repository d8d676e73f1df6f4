//! Spreads connections over the workers: knows how many each has, and how to reach it.
//!
//! The kernel gives a connection to the worker of the CPU that it was opened on, which is near its application. That
//! alone would hold an application that opens hundreds from one thread to one worker's speed. A worker that has many
//! more connections than another therefore passes new ones on.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use tokio::sync::mpsc;

use crate::worker::Command;

/// How many more connections a worker may have than the least busy one. Measured: one worker serves up to 16
/// connections of one client best, since more threads only switch more.
const MAX_IMBALANCE: usize = 16;

/// All workers of the agent.
#[derive(Debug)]
pub(crate) struct Crew(Box<[Member]>);

#[derive(Debug)]
struct Member {
    commands: mpsc::UnboundedSender<Command>,
    /// Connections that the worker serves, from accept to close.
    connections: AtomicUsize,
}

/// A connection's share of its worker's load; dropped with the connection.
#[derive(Debug)]
pub(crate) struct Share {
    crew: Arc<Crew>,
    worker: usize,
}

// === impl Crew ===

impl Crew {
    pub(crate) fn new(doors: impl IntoIterator<Item = mpsc::UnboundedSender<Command>>) -> Self {
        let member = |commands| Member { commands, connections: AtomicUsize::new(0) };
        Self(doors.into_iter().map(member).collect())
    }

    /// Decides who serves a connection that worker `own` has accepted, and counts it there.
    pub(crate) fn assign(self: &Arc<Self>, own: usize) -> Share {
        let load = |member: &Member| member.connections.load(Relaxed);
        let lightest = self.0.iter().enumerate().min_by_key(|(_, member)| load(member));
        let worker = match (self.0.get(own), lightest) {
            (Some(member), Some((index, other))) if load(member) > load(other) + MAX_IMBALANCE => {
                index
            }
            _ => own,
        };
        if let Some(member) = self.0.get(worker) {
            member.connections.fetch_add(1, Relaxed);
        }
        Share { crew: Arc::clone(self), worker }
    }

    /// Returns the number of connections of all workers.
    pub(crate) fn connections(&self) -> usize {
        self.0.iter().map(|member| member.connections.load(Relaxed)).sum()
    }

    /// Gives a command to one worker. One that has stopped does not need it any more.
    pub(crate) fn tell(&self, worker: usize, command: Command) {
        if let Some(member) = self.0.get(worker) {
            drop(member.commands.send(command));
        }
    }

    /// Gives a command to every worker.
    pub(crate) fn tell_all(&self, command: impl Fn() -> Command) {
        for member in &self.0 {
            drop(member.commands.send(command()));
        }
    }
}

// === impl Share ===

impl Share {
    /// Returns the worker that serves the connection.
    pub(crate) fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if let Some(member) = self.crew.0.get(self.worker) {
            member.connections.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crew(workers: usize) -> Arc<Crew> {
        Arc::new(Crew::new((0..workers).map(|_| mpsc::unbounded_channel().0)))
    }

    #[test]
    fn a_few_connections_stay_and_many_are_spread() {
        let crew = crew(3);
        let shares: Vec<_> = (0..300).map(|_| crew.assign(1)).collect();
        assert!(shares.iter().take(MAX_IMBALANCE).all(|share| share.worker() == 1));
        for worker in 0..3 {
            let count = shares.iter().filter(|share| share.worker() == worker).count();
            assert!(
                (300 / 3 - MAX_IMBALANCE..=300 / 3 + MAX_IMBALANCE).contains(&count),
                "{count}"
            );
        }
    }

    #[test]
    fn what_has_ended_does_not_count() {
        let crew = crew(2);
        for _ in 0..1000 {
            assert_eq!(crew.assign(0).worker(), 0);
        }
    }
}
