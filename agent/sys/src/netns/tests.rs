//! What a namespace handle promises.

use std::{net::UdpSocket, thread};

use super::*;
use crate::lab::Namespace;

fn require_shareable<T: Clone + Send + Sync + 'static>() {}

#[test]
fn a_handle_can_be_shared_and_names_the_namespace() {
    require_shareable::<Netns>();
    let (one, other) = (Namespace::new("id-a"), Namespace::new("id-b"));
    let (first, again, second) = (one.open(), one.open(), other.open());
    assert_eq!((first.id(), first.cookie()), (again.id(), again.cookie()));
    assert_ne!(first.id(), second.id());
    assert_ne!(first.cookie(), second.cookie());
}

#[test]
fn a_task_runs_inside_and_its_caller_stays_outside() {
    let namespace = Namespace::new("run");
    let before = Netns::current().unwrap();
    let inside = namespace.open().run(|| Netns::current().unwrap()).unwrap();
    assert_eq!(inside.id(), namespace.open().id());
    assert_eq!(Netns::current().unwrap().id(), before.id());
}

#[test]
fn the_cookie_is_that_of_sockets_made_inside() {
    let namespace = Namespace::new("cookie");
    let netns = namespace.open();
    let socket = netns.run(|| UdpSocket::bind("0.0.0.0:0").unwrap()).unwrap();
    let cookie = option::get_u64(&socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE).unwrap();
    assert_eq!(cookie, netns.cookie());
}

#[test]
fn a_panic_inside_is_an_error_outside() {
    let namespace = Namespace::new("panic");
    let outcome = namespace.open().run(|| assert!(namespace.name().is_empty(), "on purpose"));
    assert!(matches!(outcome, Err(Error::Panicked)));
}

#[test]
fn the_agents_own_namespace_is_nobodys_pod() {
    let outcome = Netns::open("/proc/self/ns/net");
    assert!(matches!(outcome, Err(Error::OwnNamespace(_))), "{outcome:?}");
    let namespace = Namespace::new("own");
    let outcome = namespace.open().run(|| Netns::open(namespace.path())).unwrap();
    assert!(matches!(outcome, Err(Error::OwnNamespace(_))), "{outcome:?}");
}

#[test]
fn what_is_no_network_namespace_is_refused() {
    for path in ["/etc/hostname", "/proc/self/ns/uts"] {
        let outcome = Netns::open(path);
        assert!(matches!(outcome, Err(Error::NotANamespace(_))), "{path}: {outcome:?}");
    }
    assert!(matches!(Netns::open("/run/netns/no-such"), Err(Error::Open { .. })));
}

#[test]
fn many_threads_may_work_in_one_namespace() {
    let namespace = Namespace::new("many");
    let netns = namespace.open();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let id = netns.run(|| Netns::current().unwrap().id()).unwrap();
                assert_eq!(id, netns.id());
            });
        }
    });
}

#[test]
fn the_ports_are_those_of_the_namespace() {
    let (one, other) = (Namespace::new("ports-a"), Namespace::new("ports-b"));
    let netns = one.open();
    netns.run(|| std::fs::write(PORT_RANGE, "20000 20199")).unwrap().unwrap();
    assert_eq!(*netns.ports(), 20_000..=20_199);
    assert_eq!(*other.open().ports(), DEFAULT_PORTS);
}

#[test]
fn a_range_that_is_none_is_not_taken_for_one() {
    assert_eq!(parse("32768\t60999\n"), Some(32_768..=60_999));
    for text in ["", "1", "1 x", "9 8", "1 65536", "-1 5"] {
        assert_eq!(parse(text), None, "{text}");
    }
}
