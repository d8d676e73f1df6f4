//! The fallbacks for older kernels, which this one can use too.

use std::{fs, io::ErrorKind, net::IpAddr, os::fd::AsFd};

use sluice_kernel::{Datapath, Feature, PodExemptions, PodHooks, WorkerSockets};

use crate::{
    lab::{Lab, port, set_peers},
    wire::{PUSH_ACK, Sniffer, TCP, ipv4, raw_socket, send_raw, tcp},
};

const ALL: [Feature; 3] = [Feature::Tcx, Feature::SetRetval, Feature::Mptcp];

#[test]
fn each_fallback_is_reported() {
    let lab = Lab::new("told").without(&ALL);
    let report = Datapath::verify_only(lab.settings()).unwrap();
    let mut missing: Vec<Feature> =
        report.fallbacks.iter().map(|fallback| fallback.feature).collect();
    missing.dedup();
    assert_eq!(missing, ALL);
    let plain = Lab::new("told-not");
    for (feature, since) in ALL.into_iter().zip([(6, 6), (5, 18), (5, 19)]) {
        // Distributions backport some of them to older kernels.
        assert!(release() < since || !plain.lacks(feature), "{feature:?} is there since {since:?}");
    }
}

/// Major and minor version of the running kernel.
fn release() -> (u32, u32) {
    let name = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = name.split(['.', '-']).map(str::parse);
    (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap())
}

#[test]
fn a_refusal_by_the_hook_is_econnrefused_or_eperm() {
    for without in [&[][..], &ALL[..]] {
        let lab = Lab::new("retval").without(without);
        let kind = if lab.lacks(Feature::SetRetval) {
            ErrorKind::PermissionDenied
        } else {
            ErrorKind::ConnectionRefused
        };
        let datapath = lab.open();
        let pod = lab.pod(2);
        let peer = IpAddr::from(lab.v6(77));
        set_peers(&datapath, &[peer]);
        let agent = pod.agent(&datapath, 1);
        let v4_only = WorkerSockets {
            out_port_v4: Some(port(&agent.one().out_v4)),
            out_port_v6: None,
            in_v4: Some(agent.one().in_v4.as_fd()),
            in_v6: None,
        };
        let hooks = PodHooks {
            cookie: pod.cookie(),
            netns: pod.netns().as_fd(),
            slot: Some(7),
            addresses: &[pod.v4],
            guard_ifindexes: &[pod.ifindex],
            workers: &[v4_only],
            exemptions: &PodExemptions::default(),
        };
        assert_eq!(lab.on_node(|| datapath.enroll(&hooks)).unwrap().slot, 7);
        assert_eq!(pod.connect((peer, 80)).unwrap_err().kind(), kind);
        assert_eq!(pod.counters(&datapath).denied, 1);
    }
}

#[test]
fn a_clsact_filter_guards_survives_the_agent_and_is_taken_away() {
    let lab = Lab::new("clsact").without(&[Feature::Tcx]);
    let (pod, peer) = (lab.pod(2), lab.pod(3));
    let (own, other) = (lab.v4(2), lab.v4(3));
    let packet = ipv4(own, other, TCP, &tcp(PUSH_ACK, b"clsact-plaintext"));
    let leaks = || {
        let mut sniffer = Sniffer::new(&peer);
        send_raw(&raw_socket(&pod), other, &packet);
        sniffer.sees(b"clsact-plaintext")
    };
    assert!(leaks(), "nothing guards yet");
    let datapath = lab.open();
    set_peers(&datapath, &[pod.v4, peer.v4]);
    let agent = pod.capture(&lab, &datapath);
    let complete = |datapath: &Datapath| {
        lab.on_node(|| datapath.audit(pod.cookie(), pod.netns().as_fd())).unwrap().complete()
    };
    assert!(!leaks());
    assert!(complete(&datapath));
    drop((datapath, agent));
    assert!(!leaks(), "the filter outlives the agent");

    let datapath = lab.open();
    assert!(!leaks());
    assert!(complete(&datapath));
    assert_eq!(
        lab.filters(&pod).matches("sluice_guard direct-action").count(),
        1,
        "it was replaced, not added to"
    );
    let _agent = pod.capture(&lab, &datapath);
    assert_eq!(lab.filters(&pod).matches("sluice_guard direct-action").count(), 1);
    lab.on_node(|| datapath.withdraw(pod.cookie())).unwrap();
    assert_eq!(lab.filters(&pod).matches("sluice_guard direct-action").count(), 0);
    assert!(leaks());

    let _agent = pod.capture(&lab, &datapath);
    drop(datapath);
    lab.on_node(|| Datapath::remove(&lab.settings().bpffs, &lab.settings().instance)).unwrap();
    assert_eq!(
        lab.filters(&pod).matches("sluice_guard direct-action").count(),
        0,
        "an uninstall finds it too"
    );
}
