//! Pods that are found by their processes instead of by a path.

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{self, Child, Command},
};

use sluice_mesh::{Workload, WorkloadUid};

use super::fake::Fake;
use crate::{
    Departure, PodEvent, Verdict,
    lab::{Lab, NODE, Namespace, mesh, workload},
};

const UID: &str = "0b2e7c1d-5b1a-4f4e-9d55-0123456789ab";

/// A process list whose cgroup files are ours to write, with the namespaces of real processes.
struct Processes {
    directory: PathBuf,
    children: Vec<Child>,
}

impl Processes {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("sp{}-{name}", process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self { directory, children: Vec::new() }
    }

    /// Starts a process of the pod in the namespace `pod`.
    fn add(&mut self, pod: &Namespace) {
        let child = pod.run(|| Command::new("sleep").arg("60").spawn().unwrap());
        let entry = self.directory.join(child.id().to_string());
        fs::create_dir_all(&entry).unwrap();
        fs::write(entry.join("cgroup"), format!("0::/kubepods/burstable/pod{UID}/c")).unwrap();
        symlink(format!("/proc/{}/ns", child.id()), entry.join("ns")).unwrap();
        self.children.push(child);
    }

    fn end_all(&mut self) {
        for mut child in self.children.drain(..) {
            drop(child.kill());
            drop(child.wait());
            drop(fs::remove_dir_all(self.directory.join(child.id().to_string())));
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.end_all();
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn uid() -> WorkloadUid {
    WorkloadUid(UID.into())
}

fn declared(last: u8) -> Workload {
    Workload { uid: uid(), ..workload("web", last, None) }
}

#[test]
fn a_pod_is_captured_where_its_processes_are_and_until_they_end() {
    Lab::run("located", |lab| {
        let pod = lab.pod("web", 2);
        let mut processes = Processes::new("located");
        let mut manager = Fake::default().manager().with_processes(processes.directory.clone());
        let snapshot = mesh(vec![declared(2)]);
        let events = manager.reconcile(&snapshot, NODE);
        assert!(matches!(&events[..], [PodEvent::Refused { .. }]), "{events:?}");
        assert!(matches!(manager.verify(&uid()), Verdict::NotCaptured(Some(_))));

        processes.add(&pod);
        let captured = PodEvent::Captured { pod: uid(), adopted: false, destroyed: 0 };
        assert_eq!(manager.hasten(&uid()), [captured]);
        let id = pod.run(|| sluice_sys::Netns::current().unwrap().id());
        assert_eq!(manager.verify(&uid()), Verdict::Captured(id));
        assert_eq!((manager.audit(), manager.reconcile(&snapshot, NODE)), (vec![], vec![]));

        pod.ip("address del 10.66.0.2/24 dev eth0");
        assert_eq!(manager.audit(), [], "a pod cannot leave by giving up its address");

        // Its containers are restarted in the same sandbox, in which CRI-O has no process of its own.
        processes.end_all();
        assert_eq!((manager.audit(), manager.reconcile(&snapshot, NODE)), (vec![], vec![]));
        assert_eq!(manager.verify(&uid()), Verdict::Captured(id));
        processes.add(&pod);
        assert_eq!(manager.audit(), []);

        let cookie = pod.run(|| sluice_sys::Netns::current().unwrap().cookie());
        processes.end_all();
        pod.ip("link del eth0");
        let (pod, departure) = (Some(uid()), Departure::NamespaceGone);
        let events = manager.audit();
        assert_eq!(events[0], PodEvent::Withdrawn { pod, cookie, departure });
    });
}

#[test]
fn a_pod_without_a_process_is_mended_where_it_is_and_let_go_when_nobody_declares_it() {
    Lab::run("idle", |lab| {
        let pod = lab.pod("web", 2);
        let mut processes = Processes::new("idle");
        let fake = Fake::default();
        let mut manager = fake.manager().with_processes(processes.directory.clone());
        processes.add(&pod);
        manager.reconcile(&mesh(vec![declared(2)]), NODE);
        processes.end_all();
        fake.notes().detached.insert("guard");
        let events = manager.audit();
        assert!(matches!(&events[..], [PodEvent::Repaired { .. }]), "{events:?}");
        manager.reconcile(&mesh(vec![]), NODE);
        drop(pod);
        Lab::await_end_of("web");
    });
}

#[test]
fn a_pod_does_not_leave_by_a_namespace_of_its_own_that_has_its_addresses() {
    Lab::run("impostor", |lab| {
        let (pod, made) = (lab.pod("web", 2), lab.bare("made"));
        made.ip("link set lo up");
        for address in ["10.66.0.2/32", "fd66::2/128"] {
            made.ip(&format!("address add {address} dev lo"));
        }
        let mut processes = Processes::new("impostor");
        let mut manager = Fake::default().manager().with_processes(processes.directory.clone());
        processes.add(&made);
        processes.add(&pod);
        let captured = PodEvent::Captured { pod: uid(), adopted: false, destroyed: 0 };
        assert_eq!(manager.reconcile(&mesh(vec![declared(2)]), NODE), [captured]);
        let id = pod.run(|| sluice_sys::Netns::current().unwrap().id());
        assert_eq!(manager.audit(), []);
        // Not even when nothing else of it runs.
        processes.end_all();
        processes.add(&made);
        assert_eq!(manager.audit(), []);
        assert_eq!(manager.verify(&uid()), Verdict::Captured(id));
    });
}

#[test]
fn a_static_pod_is_captured_where_the_processes_of_its_other_uid_are() {
    Lab::run("static", |lab| {
        let pod = lab.pod("web", 2);
        let mut processes = Processes::new("static");
        let mut manager = Fake::default().manager().with_processes(processes.directory.clone());
        processes.add(&pod);
        let mirror = workload("web", 2, None);
        manager.reconcile(&mesh(vec![mirror.clone()]), NODE);
        assert!(matches!(manager.verify(&mirror.uid), Verdict::NotCaptured(Some(_))));
        let mirror = Workload { static_uid: Some(UID.into()), ..mirror };
        manager.reconcile(&mesh(vec![mirror.clone()]), NODE);
        let id = pod.run(|| sluice_sys::Netns::current().unwrap().id());
        assert_eq!(manager.verify(&mirror.uid), Verdict::Captured(id));
    });
}

#[test]
fn a_pod_with_a_new_sandbox_is_captured_in_its_new_namespace() {
    Lab::run("moved", |lab| {
        let first = lab.pod("web", 2);
        let mut processes = Processes::new("moved");
        let mut manager = Fake::default().manager().with_processes(processes.directory.clone());
        processes.add(&first);
        manager.reconcile(&mesh(vec![declared(2)]), NODE);
        processes.end_all();
        let second = lab.pod("web-2", 2);
        processes.add(&second);
        let events = manager.audit();
        let replaced = |event: &PodEvent| matches!(event, PodEvent::Withdrawn { departure, .. } if *departure == Departure::NamespaceReplaced);
        assert!(events.iter().any(replaced), "{events:?}");
        let id = second.run(|| sluice_sys::Netns::current().unwrap().id());
        assert_eq!(manager.verify(&uid()), Verdict::Captured(id));
    });
}

#[test]
fn a_process_list_that_cannot_be_read_sets_nobody_free() {
    Lab::run("unlisted", |lab| {
        let pod = lab.pod("web", 2);
        let mut processes = Processes::new("unlisted");
        let fake = Fake::default();
        let mut manager = fake.manager().with_processes(processes.directory.clone());
        processes.add(&pod);
        manager.reconcile(&mesh(vec![declared(2)]), NODE);
        let mut manager = manager.with_processes("/nonexistent".into());
        let events = manager.audit();
        let [PodEvent::Impaired { reason, .. }] = &events[..] else { panic!("{events:?}") };
        assert!(reason.contains("/nonexistent"), "{reason}");
        assert_eq!(fake.notes().enrolled.len(), 1);
    });
}
