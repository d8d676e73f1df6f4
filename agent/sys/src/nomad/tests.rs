//! Where a nomad is after each move, and that it keeps no dead namespace alive.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use super::*;
use crate::lab::Namespace;

/// Every test wanders on a thread of its own: the test harness's threads must stay where they are.
fn wander(journey: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(journey);
    });
}

fn here() -> u64 {
    Netns::current().unwrap().cookie()
}

#[test]
fn a_nomad_moves_when_it_must_and_comes_home() {
    let (one, other) = (Namespace::new("nomad-a"), Namespace::new("nomad-b"));
    let (first, second) = (one.open(), other.open());
    wander(|| {
        for netns in [&first, &first, &second, &first] {
            enter(netns).unwrap();
            assert_eq!(here(), netns.cookie());
        }
        leave(&second).unwrap();
        assert_eq!(here(), first.cookie(), "left a namespace that it was not in");
        leave(&first).unwrap();
        assert_eq!(here(), home().unwrap().cookie());
    });
}

#[test]
fn a_thread_that_was_moved_behind_our_back_still_leaves() {
    let namespace = Namespace::new("nomad-moved");
    let netns = namespace.open();
    wander(|| {
        netns.enter().unwrap();
        leave(&netns).unwrap();
        assert_eq!(here(), home().unwrap().cookie());
    });
}

#[test]
fn a_namespace_that_was_left_dies_when_it_is_deleted() {
    let node = Namespace::new("nomad-node");
    let pod = Namespace::new("nomad-pod");
    pod.veth("eth0", "host0", &node);
    let netns = pod.open();
    let node = node.open();
    wander(|| {
        enter(&netns).unwrap();
        leave(&netns).unwrap();
        drop((netns, pod));
        let deadline = Instant::now() + Duration::from_secs(10);
        while node
            .run(|| fs::read_to_string("/proc/thread-self/net/dev"))
            .unwrap()
            .unwrap()
            .contains("host0")
        {
            assert!(Instant::now() < deadline, "the namespace lives on");
            thread::sleep(Duration::from_millis(20));
        }
    });
}
