//! Who is enrolled, in which order, and who is refused.

use std::{
    io::ErrorKind,
    net::{IpAddr, TcpStream},
    thread,
    time::Duration,
};

use sluice_mesh::Workload;
use sluice_sys::Netns;

use super::fake::{Fake, WORKERS};
use crate::{
    Departure, PodEvent, PodState,
    lab::{Lab, NODE, Namespace, mesh, uid, workload},
};

fn declared(name: &str, last: u8, pod: &Namespace) -> Workload {
    workload(name, last, Some(pod.path()))
}

fn captured(name: &str) -> PodEvent {
    PodEvent::Captured { pod: uid(name), adopted: false, destroyed: 0 }
}

#[test]
fn hooks_take_over_before_the_workers_accept() {
    Lab::run("order", |lab| {
        let pod = lab.pod("web", 2);
        let (fake, mut snapshot) = (Fake::default(), vec![declared("web", 2, &pod)]);
        let mut manager = fake.manager();
        assert_eq!(manager.reconcile(&mesh(snapshot.clone()), NODE), [captured("web")]);
        assert_eq!(fake.calls(), ["enrolled", "enroll", "set_peers", "add"]);
        assert_eq!(fake.notes().marked, WORKERS * 4);
        assert!(fake.notes().peers.contains(&IpAddr::from([10, 66, 0, 2])));
        assert_eq!(manager.reconcile(&mesh(snapshot.clone()), NODE), []);
        assert_eq!(fake.calls(), [""; 0], "nothing had changed");

        snapshot.clear();
        let cookie = Netns::open(pod.path()).unwrap().cookie();
        let events = manager.reconcile(&mesh(snapshot), NODE);
        let (pod, departure) = (Some(uid("web")), Departure::Undeclared);
        assert_eq!(events, [PodEvent::Withdrawn { pod, cookie, departure }]);
        assert_eq!(fake.calls(), ["withdraw", "remove", "set_peers"]);
        assert!(manager.status().is_empty());
    });
}

#[test]
fn every_worker_listens_on_the_pods_loopback() {
    Lab::run("listen", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        fake.manager().reconcile(&mesh(vec![declared("web", 2, &pod)]), NODE);
        let notes = fake.notes();
        let (_, listeners) = &notes.served[&uid("web")];
        assert_eq!(listeners.len(), WORKERS);
        // Only connections of the pod's own applications are to be reset when the agent dies.
        let is_reset = |listener| rustix::net::sockopt::socket_linger(listener).unwrap().is_some();
        assert!(listeners.iter().all(|worker| worker.outbound.iter().all(is_reset)));
        assert!(!listeners.iter().any(|worker| worker.inbound.iter().any(is_reset)));
        for listener in
            listeners.iter().flat_map(|worker| worker.outbound.iter().chain(&worker.inbound))
        {
            let address = listener.local_addr().unwrap();
            assert!(address.ip().is_loopback());
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
            assert!(TcpStream::connect(address).is_err(), "reachable on the node");
            pod.run(|| TcpStream::connect(address).unwrap());
        }
    });
}

#[test]
fn a_changed_declaration_is_enrolled_anew_without_a_gap() {
    Lab::run("renew", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        let mut manager = fake.manager();
        let mut web = declared("web", 2, &pod);
        manager.reconcile(&mesh(vec![web.clone()]), NODE);
        fake.calls();
        web.addresses.pop();
        let events = manager.reconcile(&mesh(vec![web.clone()]), NODE);
        assert_eq!(events, [PodEvent::Renewed { pod: uid("web") }]);
        assert_eq!(fake.calls(), ["enroll", "add", "set_peers"]);
        assert_eq!(fake.notes().served[&uid("web")].0.addresses, web.addresses);

        web.addresses = vec![IpAddr::from([10, 66, 0, 99])];
        let events = manager.reconcile(&mesh(vec![web]), NODE);
        assert!(matches!(&events[..], [PodEvent::Impaired { .. }]), "{events:?}");
        assert_eq!(fake.calls(), ["set_peers"], "what was in force stays in force");
        assert!(matches!(manager.status()[0].state, PodState::Impaired { .. }));
    });
}

#[test]
fn a_pod_without_ipv6_does_without_such_listeners() {
    Lab::run("v4only", |lab| {
        let pod = lab.pod("web", 2);
        pod.run(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
        let fake = Fake::default();
        let mut manager = fake.manager();
        let mut web = declared("web", 2, &pod);
        let events = manager.reconcile(&mesh(vec![web.clone()]), NODE);
        assert!(matches!(&events[..], [PodEvent::Refused { .. }]), "it declares an IPv6 address");
        web.addresses.pop();
        assert_eq!(manager.reconcile(&mesh(vec![web]), NODE), [captured("web")]);
        assert_eq!(fake.notes().marked, WORKERS * 2);
    });
}

/// Returns the reason for refusing `bad`, beside a pod that is captured.
fn refusal(lab: &Lab, bad: Workload) -> String {
    let good = lab.pod("good", 9);
    let fake = Fake::default();
    let mut manager = fake.manager();
    let events = manager.reconcile(&mesh(vec![bad, declared("good", 9, &good)]), NODE);
    let [PodEvent::Refused { pod, reason }, other] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*other, captured("good"));
    let status = manager.status().into_iter().find(|status| status.uid == *pod).unwrap();
    assert_eq!(status.state, PodState::Refused { reason: reason.clone() });
    reason.clone()
}

#[test]
fn another_pods_namespace_is_refused() {
    Lab::run("foreign", |lab| {
        let pod = lab.pod("bad", 3);
        let reason = refusal(lab, declared("bad", 2, &pod));
        assert!(reason.contains("10.66.0.2 is not in its network namespace, which has 10.66.0.3"));
    });
}

#[test]
fn a_namespace_belongs_to_one_pod_only() {
    Lab::run("taken", |lab| {
        let pod = lab.pod("first", 2);
        pod.ip("address add 10.66.0.3/24 dev eth0");
        let fake = Fake::default();
        let mut second = declared("second", 3, &pod);
        second.addresses.pop();
        let events =
            fake.manager().reconcile(&mesh(vec![declared("first", 2, &pod), second]), NODE);
        let reason = "its network namespace is that of pod shop/first: each pod has its own".into();
        assert_eq!(events, [PodEvent::Refused { pod: uid("second"), reason }, captured("first")]);
    });
}

#[test]
fn the_nodes_own_namespace_is_refused() {
    Lab::run("own", |lab| {
        let reason = refusal(lab, workload("bad", 2, Some("/proc/thread-self/ns/net".into())));
        assert!(reason.contains("agent's own network namespace"), "{reason}");
    });
}

#[test]
fn a_link_that_cannot_be_guarded_is_refused() {
    Lab::run("tun", |lab| {
        let pod = lab.pod("bad", 2);
        pod.ip("tuntap add mode tun tun0");
        let reason = refusal(lab, declared("bad", 2, &pod));
        assert!(reason.contains("\"tun0\" (tun)"), "{reason}");
    });
}

#[test]
fn a_pod_without_any_way_out_is_refused() {
    Lab::run("noveth", |lab| {
        let pod = lab.bare("bad");
        pod.ip("link set lo up");
        for address in ["10.66.0.2/32", "fd66::2/128"] {
            pod.ip(&format!("address add {address} dev lo"));
        }
        assert!(refusal(lab, declared("bad", 2, &pod)).contains("no veth pair"));
    });
}

#[test]
fn a_pod_whose_loopback_is_down_is_refused() {
    Lab::run("lodown", |lab| {
        let pod = lab.pod("bad", 2);
        pod.ip("link set lo down");
        assert!(refusal(lab, declared("bad", 2, &pod)).contains("is its loopback interface up?"));
    });
}

#[test]
fn a_namespace_that_is_nowhere_is_refused() {
    Lab::run("nowhere", |lab| {
        assert!(refusal(lab, workload("bad", 2, None)).contains("`netns`"));
    });
    Lab::run("nowhere2", |lab| {
        let reason = refusal(lab, workload("bad", 2, Some("/run/netns/none".into())));
        assert!(reason.contains("has the pod gone?"), "{reason}");
    });
}

#[test]
fn pods_of_other_nodes_and_outside_the_mesh_are_left_alone() {
    Lab::run("others", |lab| {
        let pod = lab.pod("web", 2);
        let elsewhere = Workload { node: "node-b".into(), ..declared("elsewhere", 3, &pod) };
        let outside = Workload { in_mesh: false, ..declared("outside", 2, &pod) };
        let fake = Fake::default();
        assert_eq!(fake.manager().reconcile(&mesh(vec![elsewhere, outside]), NODE), []);
        assert_eq!(fake.calls(), ["enrolled", "set_peers"]);
    });
}

#[test]
fn what_failed_is_tried_again_after_a_pause() {
    Lab::run("retry", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        fake.fail("enroll", true);
        let mut manager = fake.manager();
        let snapshot = mesh(vec![declared("web", 2, &pod)]);
        let events = manager.reconcile(&snapshot, NODE);
        assert!(matches!(&events[..], [PodEvent::Refused { .. }]));
        assert_eq!(fake.calls(), ["enrolled", "enroll", "set_peers"], "workers never heard of it");
        fake.fail("enroll", false);
        assert_eq!((manager.reconcile(&snapshot, NODE), manager.audit()), (vec![], vec![]));
        thread::sleep(Duration::from_millis(1100));
        assert_eq!(manager.audit(), [captured("web")]);
    });
}

#[test]
fn what_the_hooks_hold_on_to_is_withdrawn_later() {
    Lab::run("clingy", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        let mut manager = fake.manager();
        manager.reconcile(&mesh(vec![declared("web", 2, &pod)]), NODE);
        fake.fail("withdraw", true);
        let events = manager.reconcile(&mesh(vec![]), NODE);
        assert!(matches!(&events[..], [PodEvent::WithdrawFailed { .. }]));
        assert!(fake.notes().served.is_empty(), "the workers let go at once");
        fake.fail("withdraw", false);
        assert!(matches!(&manager.audit()[..], [PodEvent::Withdrawn { .. }]));
        assert_eq!(manager.audit(), []);
    });
}

#[test]
fn a_withdrawn_pods_namespace_is_not_kept_alive() {
    Lab::run("unpinned", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        let mut manager = fake.manager();
        manager.reconcile(&mesh(vec![declared("web", 2, &pod)]), NODE);
        manager.reconcile(&mesh(vec![]), NODE);
        drop(pod);
        Lab::await_end_of("web");
    });
}

#[test]
fn a_refused_pods_namespace_is_not_kept_alive() {
    Lab::run("unpinned2", |lab| {
        let pod = lab.pod("web", 2);
        let fake = Fake::default();
        let mut manager = fake.manager();
        manager.reconcile(&mesh(vec![declared("web", 3, &pod)]), NODE);
        drop(pod);
        Lab::await_end_of("web");
        drop(manager);
    });
}
