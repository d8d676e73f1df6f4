//! Many connections at once over few ports: every one must come with its own destination.

use std::{
    collections::HashSet,
    env,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use sluice_kernel::SocketTable;
use socket2::SockRef;

use crate::lab::{Lab, set_peers};

/// How many connections there are by default, and with `SLUICE_FULL=1`.
const COUNTS: [usize; 2] = [5_000, 200_000];
const CLIENTS: usize = 8;
const ACCEPTORS: usize = 3;

/// The destination of the `n`th connection: one of many addresses and ports.
fn destination(n: usize) -> SocketAddr {
    let host = u8::try_from(n % 250).unwrap() + 1;
    let port = u16::try_from(n % 499).unwrap() + 1000;
    SocketAddr::from(([192, 0, 2, host], port))
}

/// Counts that the clients and the agent keep during the race.
#[derive(Default)]
struct Race {
    count: usize,
    begun: AtomicUsize,
    accepted: AtomicUsize,
    /// Connections that failed.
    failed: AtomicUsize,
    /// Connections for which the agent was told a wrong destination.
    wrong: AtomicUsize,
    /// Connections for which the application was told a wrong peer.
    misled: AtomicUsize,
}

impl Race {
    /// Connects again and again, and sends the destination's number over the connection itself.
    fn connect(&self) {
        loop {
            let n = self.begun.fetch_add(1, Ordering::Relaxed);
            if n >= self.count {
                break;
            }
            let Ok(mut stream) = TcpStream::connect(destination(n)) else {
                self.failed.fetch_add(1, Ordering::Relaxed);
                continue;
            };
            if stream.peer_addr().unwrap() != destination(n) {
                self.misled.fetch_add(1, Ordering::Relaxed);
            }
            stream.write_all(&n.to_be_bytes()).unwrap();
            // Wait until the agent has the number, then leave with a reset to free the port.
            stream.read_exact(&mut [0]).unwrap();
            SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }

    /// Accepts, and compares the destination that the kernel reports with the one that the client
    /// sent.
    fn accept(&self, listener: &TcpListener, sockets: &SocketTable) {
        while self.accepted.load(Ordering::Relaxed) + self.failed.load(Ordering::Relaxed)
            < self.count
        {
            let Ok((mut stream, _)) = listener.accept() else {
                thread::yield_now();
                continue;
            };
            let original = sockets.original_destination(&stream).unwrap();
            self.accepted.fetch_add(1, Ordering::Relaxed);
            stream.set_nonblocking(false).unwrap();
            let mut n = [0; size_of::<usize>()];
            stream.read_exact(&mut n).unwrap();
            if original != Some(destination(usize::from_be_bytes(n))) {
                self.wrong.fetch_add(1, Ordering::Relaxed);
            }
            stream.write_all(&[1]).unwrap();
        }
    }
}

#[test]
fn no_connection_gets_another_ones_destination_when_ports_are_used_again() {
    let is_full = env::var_os("SLUICE_FULL").is_some_and(|value| value == "1");
    let count = COUNTS[usize::from(is_full)];
    let lab = Lab::new("race");
    let datapath = lab.open();
    let pod = lab.pod(2);
    // Few enough that each port is used many times over.
    pod.namespace.sysctl("net/ipv4/ip_local_port_range", "20000 21000");
    let peers: HashSet<IpAddr> = (0..250).map(|n| destination(n).ip()).collect();
    set_peers(&datapath, &peers.into_iter().collect::<Vec<_>>());
    let agent = pod.capture(&lab, &datapath);
    let (listener, sockets) = (&agent.one().out_v4, datapath.sockets());
    listener.set_nonblocking(true).unwrap();
    let race = Race { count, ..Race::default() };
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| pod.run(|| race.connect()));
        }
        for _ in 0..ACCEPTORS {
            scope.spawn(|| race.accept(listener, &sockets));
        }
    });
    let found =
        [&race.wrong, &race.misled, &race.failed].map(|counter| counter.load(Ordering::Relaxed));
    assert_eq!(found, [0, 0, 0], "of {count}");
    let counters = pod.counters(&datapath);
    assert_eq!((counters.captured, counters.errors), (u64::try_from(count).unwrap(), 0));
}
