//! Opt-outs and probe ports: changes reach the hooks without enrolling the pod anew.

use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use sluice_mesh::{Bypass, Workload};

use super::{cuts::Stranger, fake::Fake};
use crate::{
    PodEvent, PodState,
    lab::{Lab, NODE, mesh, uid, workload},
};

fn exempt(base: &Workload, probes: &[u16], outbound: &[u16]) -> Workload {
    Workload {
        probe_ports: probes.iter().copied().collect(),
        bypass: Bypass { outbound_ports: outbound.iter().copied().collect(), ..Bypass::default() },
        ..base.clone()
    }
}

#[test]
fn a_change_reaches_the_hooks_and_the_pod_stays_enrolled() {
    Lab::run("x-live", |lab| {
        let pod = lab.pod("web", 2);
        let web = workload("web", 2, Some(pod.path()));
        let fake = Fake::default();
        let mut manager = fake.manager();
        manager.reconcile(&mesh(vec![exempt(&web, &[8080], &[])]), NODE);
        let first = |fake: &Fake| fake.notes().exempt.values().next().cloned().unwrap();
        assert_eq!(first(&fake).probe_ports, [8080].into(), "from the first moment");
        fake.calls();
        let events = manager.reconcile(&mesh(vec![exempt(&web, &[8080], &[5432])]), NODE);
        assert_eq!(events, [PodEvent::Exempted { pod: uid("web"), destroyed: 0 }]);
        assert_eq!(fake.calls(), ["exempt"]);
        assert_eq!(first(&fake).outbound_ports, [5432].into());
        manager.reconcile(&mesh(vec![exempt(&web, &[8080], &[5432])]), NODE);
        assert!(fake.calls().is_empty(), "nothing has changed");
    });
}

#[test]
fn a_pod_whose_opt_outs_are_refused_is_captured_and_says_so() {
    Lab::run("x-many", |lab| {
        let pod = lab.pod("web", 2);
        let web = workload("web", 2, Some(pod.path()));
        let fake = Fake::default();
        fake.fail("exempt", true);
        let mut manager = fake.manager();
        let snapshot = mesh(vec![exempt(&web, &[8080], &[])]);
        manager.reconcile(&snapshot, NODE);
        let impaired = |manager: &crate::PodManager<Fake>| {
            matches!(manager.status()[0].state, PodState::Impaired { .. })
        };
        assert!(impaired(&manager));
        let events = manager.audit();
        assert!(events.is_empty(), "known already: {events:?}");
        assert!(impaired(&manager), "a sound capture does not make up for it");
        fake.fail("exempt", false);
        let events = manager.audit();
        assert_eq!(events, [PodEvent::Exempted { pod: uid("web"), destroyed: 0 }]);
        manager.audit();
        assert_eq!(manager.status()[0].state, PodState::Captured);
    });
}

#[test]
fn connections_that_are_not_exempt_any_more_end_and_others_do_not() {
    Lab::run("x-cut", |lab| {
        let pod = lab.pod("web", 2);
        let listen = || TcpListener::bind("10.66.0.254:0").unwrap();
        let (kept, dropped) = (listen(), listen());
        let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let (_kept_client, mut spared) = Stranger::connect(&pod, &kept);
        let (_dropped_client, mut ended) = Stranger::connect(&pod, &dropped);
        let mut remote = workload("remote", 254, None);
        remote.addresses.truncate(1);
        remote.node = "node-b".into();
        let web = workload("web", 2, Some(pod.path()));
        let fake = Fake::default();
        let mut manager = fake.manager();
        let both = exempt(&web, &[], &[port(&kept), port(&dropped)]);
        let events = manager.reconcile(&mesh(vec![both, remote.clone()]), NODE);
        let captured = PodEvent::Captured { pod: uid("web"), adopted: false, destroyed: 0 };
        assert_eq!(events, [captured], "what is exempt is not cut");
        let one = exempt(&web, &[], &[port(&kept)]);
        let events = manager.reconcile(&mesh(vec![one, remote]), NODE);
        assert_eq!(events, [PodEvent::Exempted { pod: uid("web"), destroyed: 1 }]);
        for stream in [&spared, &ended] {
            stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        }
        assert_eq!(spared.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        let end = ended.read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset));
    });
}

#[test]
fn ports_that_mesh_pods_keep_out_are_reached_directly() {
    let fake = Fake::default();
    let mut manager = fake.manager();
    let mut remote = workload("remote", 9, None);
    remote.node = "node-b".into();
    remote.bypass.inbound_ports = [9000].into();
    manager.reconcile(&mesh(vec![remote]), NODE);
    let direct: Vec<SocketAddr> =
        vec!["10.66.0.9:9000".parse().unwrap(), "[fd66::9]:9000".parse().unwrap()];
    assert_eq!(fake.notes().direct, direct);
}
