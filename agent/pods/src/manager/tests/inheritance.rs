//! What becomes of the pods that an earlier agent enrolled.

use std::{thread, time::Duration};

use sluice_mesh::SnapshotBuilder;
use sluice_sys::Netns;

use super::fake::Fake;
use crate::{
    Departure, PodEvent,
    lab::{Lab, NODE, Namespace, mesh, uid, workload},
};

/// The cookie of a namespace that no pod of the mesh has.
const STRANGER: u64 = 77;

fn cookie(pod: &Namespace) -> u64 {
    Netns::open(pod.path()).unwrap().cookie()
}

#[test]
fn a_declared_pod_is_taken_over_without_being_withdrawn() {
    Lab::run("i-adopt", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        fake.inherit(cookie(&pod), &["10.66.0.2"]);
        let events =
            fake.manager().reconcile(&mesh(vec![workload("web", 2, Some(pod.path()))]), NODE);
        assert_eq!(events, [PodEvent::Captured { pod: uid("web"), adopted: true, destroyed: 0 }]);
        assert_eq!(fake.calls(), ["enrolled", "enroll", "add", "set_peers"]);
    });
}

#[test]
fn a_pod_that_nobody_declares_is_withdrawn() {
    Lab::run("i-stranger", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        fake.inherit(STRANGER, &["10.66.0.2"]);
        let events =
            fake.manager().reconcile(&mesh(vec![workload("web", 2, Some(pod.path()))]), NODE);
        let departure = Departure::Undeclared;
        let withdrawn = PodEvent::Withdrawn { pod: None, cookie: STRANGER, departure };
        assert_eq!(events[0], withdrawn);
        assert_eq!(fake.calls(), ["enrolled", "withdraw", "enroll", "set_peers", "add"]);
    });
}

#[test]
fn without_a_snapshot_nothing_changes() {
    Lab::run("i-blind", |_| {
        let fake = Fake::default();
        fake.inherit(STRANGER, &["10.66.0.2"]);
        let mut manager = fake.manager();
        assert_eq!(manager.audit(), []);
        assert_eq!(fake.calls(), [""; 0], "nor are the peers that the kernel knows touched");
        assert!(fake.notes().enrolled.contains_key(&STRANGER));
    });
}

#[test]
fn a_provisional_snapshot_takes_nothing_away() {
    Lab::run("i-provis", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        fake.inherit(STRANGER, &["10.66.0.2"]);
        let mut manager = fake.manager();
        let remembered = |workloads| {
            let builder =
                SnapshotBuilder { workloads, provisional: true, ..SnapshotBuilder::default() };
            builder.build("cluster.local".parse().unwrap()).unwrap()
        };
        let web = || workload("web", 2, Some(pod.path()));
        manager.reconcile(&remembered(vec![web()]), NODE);
        manager.reconcile(&remembered(Vec::new()), NODE);
        let calls = fake.calls();
        assert!(calls.iter().all(|call| call != "withdraw" && call != "set_peers"), "{calls:?}");
        assert!(calls.iter().any(|call| call == "enroll"));
        // A snapshot that the source has really read may take away.
        let events = manager.reconcile(&mesh(vec![web()]), NODE);
        let departure = Departure::Undeclared;
        assert_eq!(events[0], PodEvent::Withdrawn { pod: None, cookie: STRANGER, departure });
    });
}

#[test]
fn what_may_be_a_declared_pod_stays_captured() {
    Lab::run("i-maybe", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        fake.inherit(cookie(&pod), &["10.66.0.2"]);
        fake.inherit(STRANGER, &["10.66.0.3"]);
        let mut manager = fake.manager();
        manager.reconcile(&mesh(vec![workload("web", 2, Some("/run/netns/none".into()))]), NODE);
        assert_eq!(fake.notes().enrolled.keys().copied().collect::<Vec<_>>(), [cookie(&pod)]);
        let events = manager.reconcile(&mesh(vec![workload("web", 2, Some(pod.path()))]), NODE);
        assert_eq!(events, [PodEvent::Captured { pod: uid("web"), adopted: true, destroyed: 0 }]);
    });
}

#[test]
fn a_declared_pod_that_is_refused_stays_captured() {
    Lab::run("i-refused", |lab| {
        let pod = lab.pod("web", 2);
        pod.ip("tuntap add mode tun tun0");
        let fake = Fake::default();
        fake.inherit(cookie(&pod), &["10.66.0.2"]);
        let mut manager = fake.manager();
        manager.reconcile(&mesh(vec![workload("web", 2, Some(pod.path()))]), NODE);
        assert!(fake.notes().enrolled.contains_key(&cookie(&pod)));
        let events = manager.reconcile(&mesh(vec![]), NODE);
        assert!(matches!(&events[..], [PodEvent::Withdrawn { pod: None, .. }]), "{events:?}");
    });
}

#[test]
fn what_cannot_be_read_is_not_withdrawn_and_read_later() {
    Lab::run("i-unread", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        fake.inherit(STRANGER, &["10.66.0.3"]);
        fake.fail("enrolled", true);
        let mut manager = fake.manager();
        let snapshot = mesh(vec![workload("web", 2, Some(pod.path()))]);
        let events = manager.reconcile(&snapshot, NODE);
        assert!(
            matches!(&events[..], [PodEvent::AdoptionFailed { .. }, PodEvent::Captured { .. }]),
            "{events:?}"
        );
        fake.fail("enrolled", false);
        let events = manager.reconcile(&snapshot, NODE);
        assert!(
            matches!(&events[..], [PodEvent::Withdrawn { cookie: STRANGER, .. }]),
            "our own pod is not inherited: {events:?}"
        );
    });
}

#[test]
fn a_namespace_that_a_pod_made_for_itself_does_not_free_the_one_that_was_inherited() {
    Lab::run("i-made", |lab| {
        let (pod, made) = (lab.pod("web", 2), lab.bare("made"));
        made.ip("link set lo up");
        for address in ["10.66.0.2/32", "fd66::2/128"] {
            made.ip(&format!("address add {address} dev lo"));
        }
        let fake = Fake::default();
        fake.inherit(cookie(&pod), &["10.66.0.2"]);
        let mut manager = fake.manager();
        for _ in 0..2 {
            manager.reconcile(&mesh(vec![workload("web", 2, Some(made.path()))]), NODE);
            manager.audit();
        }
        assert!(fake.notes().enrolled.contains_key(&cookie(&pod)));
    });
}

#[test]
fn predecessors_keep_every_pod_that_is_declared_and_not_enrolled_anew() {
    Lab::run("i-shape", |lab| {
        let (web, bad) = (lab.pod("web", 2), lab.pod("bad", 3));
        bad.ip("tuntap add mode tun tun0");
        let fake = Fake::default();
        fake.precede(cookie(&web), &["10.66.0.2"]);
        fake.precede(cookie(&bad), &["10.66.0.3"]);
        fake.precede(STRANGER, &[]);
        let mut manager = fake.manager();
        let left = || fake.notes().predecessors.keys().copied().collect::<Vec<_>>();
        let declared =
            || vec![workload("web", 2, Some(web.path())), workload("bad", 3, Some(bad.path()))];
        let remembered = SnapshotBuilder {
            workloads: declared(),
            provisional: true,
            ..SnapshotBuilder::default()
        };
        manager.reconcile(&remembered.build("cluster.local".parse().unwrap()).unwrap(), NODE);
        manager.audit();
        assert_eq!(left().len(), 3, "nobody knows yet who is declared");
        fake.fail("retire", true);
        manager.reconcile(&mesh(declared()), NODE);
        assert_eq!(left().len(), 3);
        fake.fail("retire", false);
        manager.audit();
        assert_eq!(left(), [cookie(&bad)], "it is tried again");
        bad.ip("link del tun0");
        thread::sleep(Duration::from_millis(2100));
        manager.audit();
        assert_eq!(left(), [0; 0]);
    });
}

#[test]
fn as_long_as_a_declared_pod_is_not_found_any_predecessor_may_be_it() {
    Lab::run("i-shape2", |_| {
        let fake = Fake::default();
        fake.precede(STRANGER, &[]);
        fake.precede(STRANGER + 1, &["10.66.0.2"]);
        fake.precede(STRANGER + 2, &["10.66.0.3"]);
        let mut manager = fake.manager();
        let left = || fake.notes().predecessors.keys().copied().collect::<Vec<_>>();
        manager.reconcile(&mesh(vec![workload("web", 2, Some("/run/netns/none".into()))]), NODE);
        assert_eq!(left(), [STRANGER, STRANGER + 1]);
        manager.reconcile(&mesh(vec![]), NODE);
        assert_eq!(left(), [0; 0]);
    });
}
