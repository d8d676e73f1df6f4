//! Life, death and succession of an agent: what stays, what is adopted, what is left behind.

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
};

use sluice_kernel::{Datapath, Error, Feature, LogLevel, Report};

use crate::lab::{Lab, Pod, eventually, is_refused, set_peers};

const HOOKS: [&str; 7] = [
    "sluice_connect4",
    "sluice_connect6",
    "sluice_peer4",
    "sluice_peer6",
    "sluice_own4",
    "sluice_own6",
    "sluice_sockops",
];

/// Counts the inbound hook's link, and the guard's unless the guard is a clsact filter.
fn links_of_a_pod(lab: &Lab) -> usize {
    if lab.lacks(Feature::Tcx) { 1 } else { 2 }
}

/// Whether any of the report's programs is still in the kernel.
fn any_loaded(report: &Report) -> bool {
    let ours: Vec<u32> = report.programs.iter().map(|program| program.id).collect();
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .any(|program| ours.contains(&program.id()))
}

#[test]
fn verifying_attaches_nothing_and_leaves_nothing() {
    let lab = Lab::new("verify");
    let report = Datapath::verify_only(lab.settings()).unwrap();
    assert_eq!((report.programs.len(), report.maps.len()), (10, 14));
    assert!(
        report.programs.iter().all(|program| program.instructions > 0 && program.pin.is_none())
    );
    assert!(!lab.instance_directory().exists());
    assert!(!any_loaded(&report));
}

#[test]
fn diagnostics_that_are_off_are_not_in_the_kernel() {
    let mut lab = Lab::new("log");
    let size =
        |report: Report| report.programs.iter().map(|program| program.instructions).sum::<u32>();
    let off = size(Datapath::verify_only(lab.settings()).unwrap());
    let mut last = off;
    for level in [LogLevel::Error, LogLevel::Warn, LogLevel::Debug] {
        lab.settings_mut().log = level;
        let on = size(Datapath::verify_only(lab.settings()).unwrap());
        assert!(on > last, "{level:?}: {on} instructions after {last}");
        last = on;
    }
}

#[test]
fn diagnostics_can_be_read() {
    let mut lab = Lab::new("diag");
    lab.settings_mut().log = LogLevel::Debug;
    let datapath = lab.open();
    let mut diagnostics = datapath.diagnostics().unwrap().expect("the first reader");
    assert!(datapath.diagnostics().unwrap().is_none());
    let pod = lab.pod(2);
    let peer = IpAddr::from(lab.v4(77));
    set_peers(&datapath, &[peer]);
    let _agent = pod.capture(&lab, &datapath);
    pod.connect((peer, 80)).unwrap();
    let readable = rustix::event::PollFd::new(&diagnostics, rustix::event::PollFlags::IN);
    let timeout = rustix::event::Timespec { tv_sec: 2, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut [readable], Some(&timeout)).unwrap(), 1);
    diagnostics.drain();
}

#[test]
fn a_dead_agent_means_refused_and_the_next_one_takes_over() {
    let lab = Lab::new("adopt");
    let (pod, client) = (lab.pod(2), lab.pod(3));
    let peer = SocketAddr::new(lab.v4(77).into(), 80);
    let first = lab.open();
    set_peers(&first, &[peer.ip(), pod.v4, pod.v6]);
    let agent = pod.capture(&lab, &first);
    let slot = first.enrolled().unwrap()[0].slot;
    pod.connect(peer).unwrap();
    drop((first, agent));

    assert!(is_refused(|| pod.connect(peer)), "outbound");
    assert!(is_refused(|| client.connect((pod.v4, 80))), "inbound");

    let second = lab.open();
    let [enrolled] = &second.enrolled().unwrap()[..] else { panic!("one pod was enrolled") };
    assert_eq!((enrolled.cookie, enrolled.slot), (pod.cookie(), slot));
    assert_eq!(enrolled.guard_ifindexes, [pod.ifindex]);
    let mut addresses = enrolled.addresses.clone();
    addresses.sort();
    assert_eq!(addresses, [pod.v4, pod.v6]);
    assert!(second.counters(pod.cookie()).unwrap().captured >= 2, "counts go on");
    let state = lab.on_node(|| second.audit(pod.cookie(), pod.netns().as_fd())).unwrap();
    assert!(state.complete(), "the second agent's programs are in effect: {state:?}");

    let agent = pod.capture(&lab, &second);
    let captured = pod.connect(peer).unwrap();
    let (accepted, _) = agent.one().out_v4.accept().unwrap();
    assert_eq!(second.sockets().original_destination(accepted).unwrap(), Some(peer));
    let inbound = client.connect((pod.v4, 80)).unwrap();
    agent.one().in_v4.accept().unwrap();
    drop((captured, inbound));
}

#[test]
fn moving_to_other_listeners_loses_no_connection() {
    let lab = Lab::new("move");
    let datapath = lab.open();
    let pod = lab.pod(2);
    let peer = SocketAddr::new(lab.v4(77).into(), 80);
    set_peers(&datapath, &[peer.ip()]);
    // Every listener stays open, so only a gap in the capture could fail a connection.
    let mut agents = vec![pod.capture(&lab, &datapath)];
    let connections = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            // Connects no faster than new listeners come, because nobody empties their queues.
            let connect = |_| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                std::net::TcpStream::connect(peer)
            };
            pod.run(|| (0..400).flat_map(connect).count())
        });
        while !client.is_finished() {
            let workers = 1 + agents.len() % 2;
            let agent = pod.agent(&datapath, workers);
            pod.enroll(&lab, &datapath, &agent);
            agents.push(agent);
        }
        client.join().unwrap()
    });
    assert_eq!(connections, 400, "after {} moves", agents.len());
    assert_eq!(pod.counters(&datapath).captured, 400);
}

#[test]
fn two_instances_live_side_by_side() {
    let (left, right) = (Lab::new("left"), Lab::new("right"));
    let (left_datapath, right_datapath) = (left.open(), right.open());
    let (left_pod, right_pod) = (left.pod(2), right.pod(2));
    let peer = SocketAddr::from(([192, 0, 2, 7], 80));
    set_peers(&left_datapath, &[peer.ip()]);
    set_peers(&right_datapath, &[peer.ip()]);
    let left_agent = left_pod.capture(&left, &left_datapath);
    let right_agent = right_pod.capture(&right, &right_datapath);
    for (pod, datapath, agent) in
        [(&left_pod, &left_datapath, &left_agent), (&right_pod, &right_datapath, &right_agent)]
    {
        let client = pod.connect(peer).unwrap();
        assert_eq!(client.peer_addr().unwrap(), peer);
        let (accepted, _) = agent.one().out_v4.accept().unwrap();
        assert_eq!(datapath.sockets().original_destination(accepted).unwrap(), Some(peer));
        assert_eq!(pod.counters(datapath).captured, 1);
    }
    drop(left_datapath);
    left.on_node(|| Datapath::remove(&left.settings().bpffs, &left.settings().instance)).unwrap();
    right_pod.connect(peer).unwrap();
    right_agent.one().out_v4.accept().unwrap();
}

#[test]
fn removing_leaves_no_pin_link_or_program() {
    let lab = Lab::new("remove");
    let datapath = lab.open();
    let (pod, other) = (lab.pod(2), lab.pod(3));
    let listener = other.listen((other.v4, 8080));
    set_peers(&datapath, &[pod.v4, other.v4]);
    let agents = [pod.capture(&lab, &datapath), other.capture(&lab, &datapath)];
    let report = datapath.report().unwrap();
    assert!(
        report.programs.iter().all(|program| program.pin.as_ref().is_some_and(|pin| pin.exists()))
    );
    drop((datapath, agents));
    assert!(any_loaded(&report), "pinned links keep the programs");
    let removed =
        lab.on_node(|| Datapath::remove(&lab.settings().bpffs, &lab.settings().instance)).unwrap();
    let links = HOOKS.len() + 2 * links_of_a_pod(&lab);
    assert_eq!((removed.pods, removed.links, removed.maps), (2, links, 14));
    assert!(!lab.instance_directory().exists());
    assert!(!any_loaded(&report));
    pod.connect((other.v4, 8080)).unwrap();
    listener.accept().unwrap();
}

#[test]
fn a_withdrawn_pod_is_left_alone_and_its_slot_is_free() {
    let lab = Lab::new("withdraw");
    let datapath = lab.open();
    let (pod, other) = (lab.pod(2), lab.pod(3));
    let listener = other.listen((other.v4, 8080));
    set_peers(&datapath, &[pod.v4, other.v4]);
    let _agent = pod.capture(&lab, &datapath);
    lab.on_node(|| datapath.withdraw(pod.cookie())).unwrap();
    assert!(matches!(datapath.withdraw(pod.cookie()), Err(Error::NotEnrolled(_))));
    assert!(datapath.enrolled().unwrap().is_empty());
    pod.connect((other.v4, 8080)).unwrap();
    listener.accept().unwrap();
    let _again = other.capture(&lab, &datapath);
    let enrolled = datapath.enrolled().unwrap();
    assert_eq!((enrolled[0].cookie, enrolled[0].slot), (other.cookie(), 1));
    assert_eq!(
        other.counters(&datapath),
        sluice_kernel::PodCounters::default(),
        "counts start anew"
    );
}

#[test]
fn a_pod_whose_namespace_is_gone_can_be_withdrawn() {
    let lab = Lab::new("vanished");
    let datapath = lab.open();
    let pod = lab.pod(2);
    let agent = pod.capture(&lab, &datapath);
    let cookie = pod.cookie();
    drop((pod, agent));
    lab.on_node(|| datapath.withdraw(cookie)).unwrap();
    assert!(datapath.enrolled().unwrap().is_empty());
}

#[test]
fn an_audit_names_what_is_missing() {
    let lab = Lab::new("audit");
    let datapath = lab.open();
    let (pod, stranger) = (lab.pod(2), lab.pod(3));
    let _agent = pod.capture(&lab, &datapath);
    let audit =
        |pod: &Pod| lab.on_node(|| datapath.audit(pod.cookie(), pod.netns().as_fd())).unwrap();
    assert!(audit(&pod).complete());
    let state = audit(&stranger);
    assert!(!state.complete() && !state.enrolled && !state.inbound);

    // Somebody removes pins behind our back; only a pin holds a link.
    let generation =
        fs::read_dir(lab.instance_directory()).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(generation.join("hook/sluice_connect6")).unwrap();
    // Nobody holds the link any more, but the kernel detaches it asynchronously.
    assert!(eventually(|| audit(&pod).missing_hooks == ["sluice_connect6"]));
    let hooks = generation.join("pod").join(pod.cookie().to_string());
    fs::remove_file(hooks.join("inbound")).unwrap();
    lab.lose(&pod, "guard");
    assert!(eventually(|| {
        let state = audit(&pod);
        state.enrolled && !state.inbound && !state.guards.iter().any(|guard| guard.attached)
    }));

    // Enrolling again mends the pod; opening the datapath again mends the node.
    let _agent = pod.capture(&lab, &datapath);
    let datapath = lab.open();
    assert!(lab.on_node(|| datapath.audit(pod.cookie(), pod.netns().as_fd())).unwrap().complete());

    // A pod whose pins are gone can be withdrawn.
    fs::remove_file(hooks.join("inbound")).unwrap();
    lab.lose(&pod, "guard");
    lab.on_node(|| datapath.withdraw(pod.cookie())).unwrap();
    assert!(!hooks.exists() && datapath.enrolled().unwrap().is_empty());
}

#[test]
fn another_cgroup_in_the_settings_moves_the_hooks() {
    let mut lab = Lab::new("cgroup");
    let root = lab.settings().cgroup.clone();
    let narrow = root.join(&lab.settings().instance);
    fs::create_dir(&narrow).unwrap();
    lab.settings_mut().cgroup.clone_from(&narrow);
    let pod = lab.pod(2);
    let peer = SocketAddr::new(lab.v4(77).into(), 80);
    let outside = lab.open();
    set_peers(&outside, &[peer.ip()]);
    let agent = pod.capture(&lab, &outside);
    let connect = || {
        let time = std::time::Duration::from_millis(200);
        pod.run(|| std::net::TcpStream::connect_timeout(&peer, time)).is_ok()
    };
    assert!(!connect(), "this process is not in the cgroup");
    drop(outside);
    lab.settings_mut().cgroup = root;
    let inside = lab.open();
    assert!(connect());
    fs::remove_dir(narrow).unwrap();
    drop((inside, agent));
}

#[test]
fn a_predecessor_of_another_shape_captures_until_it_is_retired() {
    let mut lab = Lab::new("retire");
    let pod = lab.pod(2);
    let peer = SocketAddr::new(lab.v4(77).into(), 80);
    let old = lab.open();
    set_peers(&old, &[peer.ip()]);
    let agent = pod.capture(&lab, &old);
    drop((old, agent));

    lab.settings_mut().max_peers *= 2;
    let new = lab.open();
    assert!(new.enrolled().unwrap().is_empty(), "maps of another size are not adopted");
    set_peers(&new, &[peer.ip()]);
    assert!(is_refused(|| pod.connect(peer)));
    let agent = pod.capture(&lab, &new);
    let retire = || lab.on_node(|| new.retire_predecessors(&HashSet::new())).unwrap();
    let retired = retire();
    assert_eq!((retired.pods, retired.links), (1, HOOKS.len() + links_of_a_pod(&lab)));
    let client = pod.connect(peer).unwrap();
    let (accepted, _) = agent.one().out_v4.accept().unwrap();
    assert_eq!(new.sockets().original_destination(accepted).unwrap(), Some(peer));
    assert_eq!(retire().links, 0);
    drop(client);
}

#[test]
fn a_pod_that_is_not_enrolled_anew_is_spared_when_its_predecessor_is_retired() {
    let mut lab = Lab::new("spared");
    let (moved, spared) = (lab.pod(2), lab.pod(3));
    let peer = SocketAddr::new(lab.v4(77).into(), 80);
    let old = lab.open();
    set_peers(&old, &[peer.ip()]);
    let agents = [moved.capture(&lab, &old), spared.capture(&lab, &old)];
    drop((old, agents));

    lab.settings_mut().max_peers *= 2;
    let new = lab.open();
    set_peers(&new, &[peer.ip()]);
    let agent = moved.capture(&lab, &new);
    let [left] = &new.predecessors().unwrap()[..] else { panic!("one is not enrolled anew") };
    assert_eq!((left.cookie, &left.guard_ifindexes[..]), (spared.cookie(), &[spared.ifindex][..]));
    assert!(left.addresses.contains(&spared.v4));
    let keep = HashSet::from([spared.cookie(), moved.cookie()]);
    let retired = lab.on_node(|| new.retire_predecessors(&keep)).unwrap();
    assert_eq!((retired.pods, retired.maps), (1, 0), "whoever is enrolled here is retired there");
    moved.connect(peer).unwrap();
    agent.one().out_v4.accept().unwrap();
    assert!(is_refused(|| spared.connect(peer)), "in no gap between the two is it free");

    let _agent = spared.capture(&lab, &new);
    assert!(new.predecessors().unwrap().is_empty());
    let retired = lab.on_node(|| new.retire_predecessors(&HashSet::new())).unwrap();
    assert_eq!((retired.pods, retired.maps), (1, 14));
    spared.connect(peer).unwrap();
}
