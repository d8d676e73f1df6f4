//! Enrolments, renewals and withdrawals that fail: what they leave behind, and how they are finished.

use std::{fs, net::SocketAddr, os::fd::AsFd};

use sluice_kernel::{Error, PodExemptions, PodHooks, WorkerSockets};

use crate::lab::{AgentSockets, Lab, Pod, is_refused, port, set_peers};

/// The index of no device.
const NO_DEVICE: u32 = 999_999;

/// Calls `enrol` with what an enrolment of `pod` needs: the IPv4 sockets of `agent`, and guards on `devices`.
fn with_hooks(pod: &Pod, agent: &AgentSockets, devices: &[u32], enrol: impl FnOnce(&PodHooks<'_>)) {
    let sockets = WorkerSockets {
        out_port_v4: Some(port(&agent.one().out_v4)),
        out_port_v6: None,
        in_v4: Some(agent.one().in_v4.as_fd()),
        in_v6: None,
    };
    enrol(&PodHooks {
        cookie: pod.cookie(),
        netns: pod.netns().as_fd(),
        slot: None,
        addresses: &[pod.v4],
        guard_ifindexes: devices,
        workers: &[sockets],
        exemptions: &PodExemptions::default(),
    });
}

#[test]
fn an_enrolment_that_fails_leaves_nothing_behind() {
    let lab = Lab::new("failed");
    let datapath = lab.open();
    let pod = lab.pod(2);
    let agent = pod.agent(&datapath, 1);
    with_hooks(&pod, &agent, &[pod.ifindex, NO_DEVICE], |hooks| {
        assert!(matches!(
            lab.on_node(|| datapath.enroll(hooks)),
            Err(Error::Filter { ifindex: NO_DEVICE, .. })
        ));
    });
    assert!(datapath.enrolled().unwrap().is_empty());
    let state = lab.on_node(|| datapath.audit(pod.cookie(), pod.netns().as_fd())).unwrap();
    assert!(!state.inbound && !state.enrolled);
    let neighbour = lab.pod(3);
    let listener = neighbour.listen((neighbour.v4, 80));
    pod.connect((neighbour.v4, 80)).unwrap();
    listener.accept().unwrap();
    with_hooks(&pod, &agent, &[pod.ifindex], |hooks| {
        for wrong in [
            PodHooks { workers: &[], ..*hooks },
            PodHooks { addresses: &[[127, 0, 0, 1].into()], ..*hooks },
        ] {
            assert!(lab.on_node(|| datapath.enroll(&wrong)).is_err());
        }
    });
}

#[test]
fn slots_run_out_loudly() {
    let mut lab = Lab::new("slots");
    lab.settings_mut().max_pods = 1;
    let datapath = lab.open();
    let (pod, other) = (lab.pod(2), lab.pod(3));
    let _agent = pod.capture(&lab, &datapath);
    let agent = other.agent(&datapath, 1);
    with_hooks(&other, &agent, &[other.ifindex], |hooks| {
        let refused = lab.on_node(|| datapath.enroll(hooks));
        assert!(matches!(refused, Err(Error::NoSlot { max_pods: 1 })));
    });
}

#[test]
fn a_withdrawal_that_fails_half_way_is_finished_later() {
    let lab = Lab::new("halfway");
    let datapath = lab.open();
    let (pod, other) = (lab.pod(2), lab.pod(3));
    let listener = other.listen((other.v4, 8080));
    let peer = SocketAddr::new(other.v4, 8080);
    set_peers(&datapath, &[pod.v4, other.v4]);
    let agent = pod.capture(&lab, &datapath);
    drop(agent);
    // A pin that cannot be opened.
    let generation =
        fs::read_dir(lab.instance_directory()).unwrap().next().unwrap().unwrap().path();
    let hooks = generation.join("pod").join(pod.cookie().to_string());
    let (pin, aside) = (hooks.join("inbound"), generation.join("pod/aside"));
    fs::rename(&pin, &aside).unwrap();
    fs::create_dir(&pin).unwrap();
    let withdraw = || lab.on_node(|| datapath.withdraw(pod.cookie()));
    assert!(matches!(withdraw(), Err(Error::Path { .. })));
    assert_eq!(datapath.enrolled().unwrap()[0].cookie, pod.cookie(), "so that it is tried again");
    assert!(is_refused(|| pod.connect(peer)));
    fs::remove_dir(&pin).unwrap();
    fs::rename(&aside, &pin).unwrap();
    withdraw().unwrap();
    assert!(!hooks.exists() && matches!(withdraw(), Err(Error::NotEnrolled(_))));
    pod.connect(peer).unwrap();
    listener.accept().unwrap();
}

#[test]
fn a_renewal_that_fails_leaves_the_pod_with_its_listeners() {
    let lab = Lab::new("renewal");
    let datapath = lab.open();
    let (pod, client) = (lab.pod(2), lab.pod(3));
    let agent = pod.capture(&lab, &datapath);
    let next = pod.agent(&datapath, 1);
    with_hooks(&pod, &next, &[pod.ifindex, NO_DEVICE], |hooks| {
        assert!(matches!(lab.on_node(|| datapath.enroll(hooks)), Err(Error::Filter { .. })));
    });
    drop(next);
    for (address, listener) in [(pod.v4, &agent.one().in_v4), (pod.v6, &agent.one().in_v6)] {
        client.connect((address, 80)).unwrap();
        listener.accept().unwrap();
    }
}
