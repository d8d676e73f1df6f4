//! Real processes in real namespaces, behind a process list whose cgroup files are ours to write.

use std::{
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
};

use super::*;
use crate::lab::Namespace;

const UID: &str = "0b2e7c1d-5b1a-4f4e-9d55-0123456789ab";
const UID_SLICE: &str = "0b2e7c1d_5b1a_4f4e_9d55_0123456789ab";
const OTHER: &str = "ffffffff-5b1a-4f4e-9d55-0123456789ab";

fn ours() -> Vec<IpAddr> {
    vec!["10.77.0.2".parse().unwrap(), "fd77::2".parse().unwrap()]
}

/// A process list with `cgroup` texts of the test's choosing and the namespaces of real processes.
struct List {
    directory: PathBuf,
    children: Vec<Child>,
}

impl List {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("ss{}-{name}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        // Stands for the entries of a process list that are not processes.
        fs::create_dir_all(directory.join("sys")).unwrap();
        Self { directory, children: Vec::new() }
    }

    /// Starts a process in `netns`, or in ours, whose cgroup file reads `cgroup`.
    fn process(&mut self, netns: Option<&Namespace>, cgroup: &str) {
        let spawn = || Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let child = match netns {
            Some(namespace) => namespace.open().run(spawn).unwrap(),
            None => spawn(),
        };
        let entry = self.directory.join(child.id().to_string());
        fs::create_dir_all(&entry).unwrap();
        fs::write(entry.join("cgroup"), cgroup).unwrap();
        symlink(format!("/proc/{}/ns", child.id()), entry.join("ns")).unwrap();
        self.children.push(child);
    }

    fn find<'a>(&self, uid: &'a str, addresses: &'a [IpAddr]) -> Option<Netns> {
        find(&self.directory, &[Sought { uid, static_uid: None, addresses, known: None }])
            .unwrap()
            .remove(uid)
    }
}

impl Drop for List {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn pod(name: &str) -> Namespace {
    let pod = Namespace::new(name);
    pod.ip("link set lo up");
    for address in ours() {
        pod.ip(&format!("address add {address} dev lo"));
    }
    pod
}

#[test]
fn every_layout_of_the_kubelet_is_read() {
    let layouts = [
        format!("0::/kubepods/burstable/pod{UID}/3c9f"),
        format!("0::/kubepods/pod{UID}"),
        format!(
            "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{UID_SLICE}.slice/cri-containerd-3c9f.scope"
        ),
        format!(
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UID_SLICE}.slice/crio-3c9f.scope"
        ),
        format!("12:pids:/kubepods/pod{UID}/3c9f\n1:name=systemd:/kubepods/pod{UID}/3c9f"),
        format!("12:pids:/user.slice\n1:name=systemd:/\n0::/n1/kubepods/burstable/pod{UID}/3c9f"),
        format!("0::/../../pod{UID}/3c9f"),
        format!(
            "4:cpu,cpuacct:/system.slice/containerd.service/kubepods-pod{UID_SLICE}.slice:cri-containerd:3c9f\n0::/kubepods/pod{UID}"
        ),
    ];
    for layout in layouts {
        assert_eq!(pod_uid(&layout).as_deref(), Some(UID), "{layout}");
    }
    for none in ["0::/", "0::/system.slice/podman.service", "0::/kubepods/podcast", "", "nonsense"]
    {
        assert_eq!(pod_uid(none), None, "{none}");
    }
}

#[test]
fn a_cgroup_that_a_pod_made_for_itself_does_not_count() {
    let nested = format!("0::/kubepods/pod{OTHER}/3c9f/kubepods/pod{UID}/x");
    assert_eq!(pod_uid(&nested).as_deref(), Some(OTHER));
}

#[test]
fn the_namespace_of_a_pod_is_found_among_others() {
    let (mine, wrong) = (pod("find"), Namespace::new("find-wrong"));
    let mut list = List::new("find");
    list.process(None, "0::/system.slice/sshd.service");
    list.process(Some(&wrong), &format!("0::/kubepods/pod{OTHER}/a"));
    // A process of the pod in a namespace below it, as Docker in Docker makes them.
    list.process(Some(&wrong), &format!("0::/kubepods/pod{UID}/nested"));
    list.process(Some(&mine), &format!("0::/kubepods/pod{UID}/a"));
    list.process(Some(&mine), &format!("0::/kubepods/pod{UID}/b"));
    let found = list.find(UID, &ours()).unwrap();
    assert_eq!(found.id(), mine.open().id());
}

#[test]
fn a_namespace_without_the_pods_addresses_is_not_its_own() {
    let mine = pod("lacks");
    let mut list = List::new("lacks");
    list.process(Some(&mine), &format!("0::/kubepods/pod{UID}/a"));
    let more = [ours(), vec!["10.77.0.3".parse().unwrap()]].concat();
    assert!(list.find(UID, &more).is_none());
    assert!(list.find(UID, &[]).is_none(), "without an address nothing can be checked");
    assert!(list.find(OTHER, &ours()).is_none());
    assert!(list.find(UID, &ours()).is_some());
}

#[test]
fn a_known_namespace_is_recognised_whatever_its_addresses_are_now() {
    let mine = pod("known");
    let mut list = List::new("known");
    list.process(Some(&mine), &format!("0::/kubepods/pod{UID}/a"));
    mine.ip("address del 10.77.0.2/32 dev lo");
    assert!(list.find(UID, &ours()).is_none());
    let addresses = ours();
    for (known, found) in [(mine.open().id(), 1), (Namespace::new("other").open().id(), 0)] {
        let sought =
            Sought { uid: UID, static_uid: None, addresses: &addresses, known: Some(known) };
        assert_eq!(find(&list.directory, &[sought]).unwrap().len(), found);
    }
}

#[test]
fn a_namespace_that_a_pod_made_for_itself_is_not_taken_for_its_own() {
    let (node, mine, made) = (Namespace::new("made-node"), pod("made-mine"), pod("made"));
    mine.veth("eth0", "host0", &node);
    let (addresses, cgroup) = (ours(), format!("0::/kubepods/pod{UID}/a"));
    let found = |list: &List, known: Option<&Namespace>| {
        let known = known.map(|known| known.open().id());
        let sought = [Sought { uid: UID, static_uid: None, addresses: &addresses, known }];
        let search = || find(&list.directory, &sought).unwrap().remove(UID);
        node.open().run(search).unwrap().map(|netns| netns.id())
    };
    // A process list is read in the order of its numbers: either may come first.
    for order in [[&made, &mine], [&mine, &made]] {
        let mut list = List::new("made");
        for netns in order {
            list.process(Some(netns), &cgroup);
        }
        assert_eq!(found(&list, None), Some(mine.open().id()));
        assert_eq!(found(&list, Some(&mine)), Some(mine.open().id()));
        assert_eq!(found(&list, Some(&node)), Some(mine.open().id()), "a new sandbox");
    }
    let mut list = List::new("made-alone");
    list.process(Some(&made), &cgroup);
    assert_eq!(found(&list, Some(&mine)), None, "its own is still somewhere");
    assert_eq!(found(&list, None), Some(made.open().id()), "to be refused with the reason");
}

#[test]
fn a_known_namespace_counts_as_long_as_a_process_is_in_it() {
    let [node, old, new] = [Namespace::new("both-node"), pod("both-old"), pod("both-new")];
    old.veth("eth0", "host0", &node);
    new.veth("eth0", "host1", &node);
    let (addresses, known) = (ours(), Some(old.open().id()));
    let sought = [Sought { uid: UID, static_uid: None, addresses: &addresses, known }];
    for order in [[&old, &new], [&new, &old]] {
        let mut list = List::new("both");
        for netns in order {
            list.process(Some(netns), &format!("0::/kubepods/pod{UID}/a"));
        }
        let found = node.open().run(|| find(&list.directory, &sought).unwrap()).unwrap();
        assert_eq!(found[UID].id(), old.open().id());
    }
}

#[test]
fn a_static_pod_is_found_by_the_uid_that_the_kubelet_has_for_it() {
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    let mine = pod("static");
    let mut list = List::new("static");
    list.process(Some(&mine), &format!("0::/kubepods.slice/kubepods-pod{HASH}.slice/c.scope"));
    let addresses = ours();
    assert!(list.find(UID, &addresses).is_none());
    let sought = Sought { uid: UID, static_uid: Some(HASH), addresses: &addresses, known: None };
    assert_eq!(find(&list.directory, &[sought]).unwrap()[UID].id(), mine.open().id());
}

#[test]
fn a_pod_that_claims_anothers_uid_hides_neither_of_them() {
    let (mine, its) = (pod("claimed"), Namespace::new("claiming"));
    its.ip("link set lo up");
    its.ip("address add 10.77.0.9 dev lo");
    let mut list = List::new("claimed");
    list.process(Some(&mine), &format!("0::/kubepods/pod{UID}/a"));
    list.process(Some(&its), &format!("0::/kubepods/pod{OTHER}/a"));
    let (addresses, others) = (ours(), vec!["10.77.0.9".parse().unwrap()]);
    let claimed = Sought { uid: UID, static_uid: None, addresses: &addresses, known: None };
    let claiming = Sought { uid: OTHER, static_uid: Some(UID), addresses: &others, known: None };
    for sought in [[claimed, claiming], [claiming, claimed]] {
        let found = find(&list.directory, &sought).unwrap();
        assert_eq!(found[UID].id(), mine.open().id());
        assert_eq!(found[OTHER].id(), its.open().id());
    }
}

#[test]
fn the_nodes_own_namespace_is_never_a_pods() {
    let node = addresses(&Netns::current().unwrap()).unwrap();
    let one = pod("own");
    // A thread in a namespace of its own stands for the node.
    one.open()
        .run(|| {
            let mut list = List::new("own");
            list.process(None, &format!("0::/kubepods/pod{UID}/a"));
            assert!(list.find(UID, &ours()).is_none());
        })
        .unwrap();
    let mut list = List::new("own2");
    list.process(None, &format!("0::/kubepods/pod{UID}/a"));
    let known = node.first().copied().unwrap_or_else(|| "10.0.0.1".parse().unwrap());
    assert!(list.find(UID, &[known]).is_none());
}

#[test]
fn processes_that_end_meanwhile_are_passed_over() {
    let mine = pod("races");
    let mut list = List::new("races");
    for _ in 0..20 {
        list.process(Some(&mine), &format!("0::/kubepods/pod{UID}/a"));
    }
    for child in list.children.iter_mut().skip(1).step_by(2) {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    fs::create_dir_all(list.directory.join("999999")).unwrap();
    assert!(list.find(UID, &ours()).is_some());
}

#[test]
fn the_real_process_list_can_be_searched() {
    let missing = ours();
    let sought = [Sought { uid: UID, static_uid: None, addresses: &missing, known: None }];
    assert!(find(Path::new("/proc"), &sought).unwrap().is_empty());
    let nowhere = find(Path::new("/nonexistent"), &sought).unwrap_err().to_string();
    assert!(nowhere.contains("/nonexistent") && nowhere.contains("proc:"), "{nowhere}");
}
