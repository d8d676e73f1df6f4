//! What an audit notices, mends and reports.

use sluice_mesh::Snapshot;

use super::fake::Fake;
use crate::{
    Departure, PodEvent, PodManager, PodState,
    lab::{Lab, NODE, Namespace, mesh, uid, workload},
};

/// A captured pod.
struct Scene {
    pod: Namespace,
    snapshot: Snapshot,
    fake: Fake,
    manager: PodManager<Fake>,
}

impl Scene {
    fn new(lab: &Lab) -> Self {
        let pod = lab.pod("web", 2);
        let snapshot = mesh(vec![workload("web", 2, Some(pod.path()))]);
        let fake = Fake::default();
        let mut manager = fake.manager();
        manager.reconcile(&snapshot, NODE);
        assert_eq!(manager.audit(), [], "a sound pod");
        fake.calls();
        Self { pod, snapshot, fake, manager }
    }

    fn mended(&mut self) -> String {
        let events = self.manager.audit();
        let [PodEvent::Repaired { found, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(self.fake.calls(), ["enroll", "add"]);
        assert_eq!(self.manager.audit(), []);
        found.clone()
    }

    fn impaired(&mut self) -> String {
        let events = self.manager.audit();
        let [PodEvent::Impaired { reason, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(self.manager.audit(), [], "told once");
        assert_eq!(self.manager.status()[0].state, PodState::Impaired { reason: reason.clone() });
        reason.clone()
    }
}

#[test]
fn a_missing_hook_of_the_pod_is_put_back() {
    Lab::run("a-hook", |lab| {
        let mut scene = Scene::new(lab);
        scene.fake.notes().detached.insert("inbound");
        assert!(scene.mended().contains("inbound hook"));
        scene.fake.notes().detached.insert("guard");
        assert!(scene.mended().contains("guard on interface"));
        scene.fake.notes().enrolled.clear();
        assert!(scene.mended().contains("table of pods"));
    });
}

#[test]
fn a_missing_hook_of_the_node_is_put_back_before_pods_are_judged() {
    Lab::run("a-node", |lab| {
        let mut scene = Scene::new(lab);
        scene.fake.notes().missing_hooks.push("sluice_connect4");
        assert_eq!(scene.manager.audit(), []);
        assert_eq!(scene.fake.calls(), ["reattach"]);
        assert_eq!(scene.manager.audit(), []);
        assert_eq!(scene.fake.calls(), [""; 0], "only when one is missing");
    });
}

#[test]
fn a_hook_of_the_node_that_cannot_be_put_back_is_reported_until_it_can() {
    Lab::run("a-node-not", |lab| {
        let mut scene = Scene::new(lab);
        scene.fake.fail("reattach", true);
        scene.fake.notes().missing_hooks.push("sluice_connect4");
        assert!(scene.impaired().contains("sluice_connect4"));
        scene.fake.fail("reattach", false);
        assert_eq!(scene.manager.audit(), []);
        assert_eq!(scene.manager.status()[0].state, PodState::Captured);
    });
}

#[test]
fn a_pod_that_could_not_be_enrolled_anew_is_so_whatever_the_hooks_show() {
    Lab::run("a-half", |lab| {
        let mut scene = Scene::new(lab);
        scene.fake.notes().detached.insert("guard");
        scene.fake.fail("enroll", true);
        assert!(scene.impaired().contains("on purpose"));
        // The guard is back, by whatever the failed attempt did; its listeners may be gone.
        scene.fake.notes().detached.clear();
        scene.fake.fail("enroll", false);
        scene.fake.calls();
        assert!(scene.mended().contains("half way"));
    });
}

#[test]
fn peers_that_another_agent_may_have_changed_are_set_again_once_it_has_failed() {
    Lab::run("a-thaw", |lab| {
        let mut scene = Scene::new(lab);
        let peers = scene.fake.notes().peers.clone();
        scene.manager.freeze();
        scene.fake.notes().peers.clear();
        let mut direct = workload("direct", 9, None);
        direct.node = "node-b".into();
        direct.bypass.inbound_ports = [9000].into();
        assert_eq!(scene.manager.reconcile(&mesh(vec![direct]), NODE), [], "frozen");
        scene.fake.notes().direct.push(([10, 0, 0, 1], 80).into());
        scene.manager.unfreeze();
        scene.manager.audit();
        assert_eq!(scene.fake.calls(), [""; 0], "what is known of the peers is old");
        scene.manager.reconcile(&scene.snapshot, NODE);
        assert_eq!(scene.fake.notes().peers, peers);
        assert_eq!(scene.fake.notes().direct, []);
    });
}

#[test]
fn a_new_veth_pair_is_guarded() {
    Lab::run("a-veth", |lab| {
        let mut scene = Scene::new(lab);
        lab.wire(&scene.pod, "net1", "more");
        assert!(scene.mended().contains("veth pairs"));
        let enrolled = scene.fake.notes().enrolled.values().next().unwrap().clone();
        assert_eq!(enrolled.guard_ifindexes.len(), 2);
    });
}

#[test]
fn a_new_way_past_the_guard_is_reported() {
    Lab::run("a-tun", |lab| {
        let mut scene = Scene::new(lab);
        scene.pod.ip("tuntap add mode tun tun0");
        assert!(scene.impaired().contains("tun0"));
        assert_eq!(scene.fake.calls(), [""; 0], "it stays captured");
    });
}

#[test]
fn a_namespace_that_has_gone_is_withdrawn_and_dies() {
    Lab::run("a-gone", |lab| {
        let Scene { pod, fake, mut manager, .. } = Scene::new(lab);
        drop(pod);
        let events = manager.audit();
        let departure = Departure::NamespaceGone;
        assert!(
            matches!(
                &events[..],
                [PodEvent::Withdrawn { departure: found, .. }, PodEvent::Refused { .. }]
                    if *found == departure
            ),
            "{events:?}"
        );
        assert_eq!(fake.calls(), ["withdraw", "remove"]);
        Lab::await_end_of("web");
        drop(manager);
    });
}

#[test]
fn a_new_namespace_at_the_same_path_is_another_pod() {
    Lab::run("a-again", |lab| {
        let Scene { pod, snapshot, fake, mut manager } = Scene::new(lab);
        let old = *fake.notes().enrolled.keys().next().unwrap();
        drop(pod);
        let again = lab.bare("web");
        again.ip("link set lo up");
        lab.wire(&again, "eth0", "web2");
        for address in ["10.66.0.2/24", "fd66::2/64 nodad"] {
            again.ip(&format!("address add {address} dev eth0"));
        }
        let events = manager.audit();
        let replaced = PodEvent::Withdrawn {
            pod: Some(uid("web")),
            cookie: old,
            departure: Departure::NamespaceReplaced,
        };
        let captured = PodEvent::Captured { pod: uid("web"), adopted: false, destroyed: 0 };
        assert_eq!(events, [replaced, captured]);
        assert_eq!(fake.calls(), ["withdraw", "remove", "enroll", "add"]);
        assert_eq!(manager.reconcile(&snapshot, NODE), []);
        Lab::await_end_of("web");
    });
}

#[test]
fn peers_that_could_not_be_set_are_set_later() {
    Lab::run("a-peers", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        let mut manager = fake.manager();
        fake.fail("set_peers", true);
        let events = manager.reconcile(&mesh(vec![workload("web", 2, Some(pod.path()))]), NODE);
        assert!(matches!(&events[..], [PodEvent::PeersFailed { .. }, PodEvent::Captured { .. }]));
        fake.fail("set_peers", false);
        assert_eq!(manager.audit(), []);
        assert_eq!(fake.notes().peers.len(), 2);
    });
}

#[test]
fn a_nearly_full_table_of_peers_is_reported_once() {
    Lab::run("a-full", |_| {
        let fake = Fake::default();
        let mut manager = fake.manager();
        fake.notes().capacity = 5;
        let remote = |last| {
            let mut pod = workload(&format!("w{last}"), last, None);
            pod.node = "node-b".into();
            pod
        };
        assert_eq!(manager.reconcile(&mesh(vec![remote(2)]), NODE), []);
        let events = manager.reconcile(&mesh(vec![remote(2), remote(3)]), NODE);
        assert!(matches!(&events[..], [PodEvent::PeersNearlyFull(fill)] if !fill.capture_all));
        assert_eq!(manager.reconcile(&mesh(vec![remote(2), remote(4)]), NODE), []);
    });
}
