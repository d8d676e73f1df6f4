//! Which pods belong to the mesh.

use sluice_cluster::{Outside, Standing};

use crate::world::{SHOP, World, pod};

#[test]
fn labels_of_namespace_and_pod_decide_both_ways_without_restart() {
    let mut world = World::new(SHOP);
    world.apply(
        &(pod("plain", "10.0.0.1", ["", "", ""])
            + &pod("out", "10.0.0.2", ["labels: {istio.io/dataplane-mode: none}", "", ""])),
    );
    assert_eq!(world.enrolled(), ["plain"]);
    assert!(world.apply("kind: Namespace\nmetadata: {name: shop, labels: {}}\n"));
    assert!(world.enrolled().is_empty());
    assert!(!world.protects("10.0.0.1"));
    world.apply(&pod("plain", "10.0.0.1", ["labels: {istio.io/dataplane-mode: ambient}", "", ""]));
    assert_eq!(world.enrolled(), ["plain"]);
    let workload = world.workload("plain").unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/plain");
}

#[test]
fn an_uninstallation_takes_every_pod_out_and_back_in_when_it_is_called_off() {
    let mut world = World::new(&(SHOP.to_owned() + &pod("plain", "10.0.0.1", ["", "", ""])));
    assert!(world.protects("10.0.0.1") && !world.snapshot().is_leaving());
    world.cluster.set_leaving(true);
    assert!(world.settle() && world.snapshot().is_leaving());
    assert!(world.enrolled().is_empty() && !world.protects("10.0.0.1"));
    let standing = world.cluster.pod("plain").unwrap().standing;
    assert_eq!(standing, Some(Standing::Outside(Outside::Leaving)));
    // No pod joins meanwhile, whatever the labels say.
    let labelled = ["labels: {istio.io/dataplane-mode: ambient}", "", ""];
    world.apply(&pod("late", "10.0.0.2", labelled));
    assert!(world.enrolled().is_empty());
    world.cluster.set_leaving(false);
    assert!(world.settle());
    assert_eq!(world.enrolled(), ["late", "plain"]);
}

#[test]
fn pods_of_the_nodes_network_are_not_of_the_mesh_nor_is_their_address() {
    let world = World::new(
        &(SHOP.to_owned()
            + &pod(
                "host",
                "192.168.0.1",
                ["labels: {istio.io/dataplane-mode: ambient}", "hostNetwork: true", ""],
            )),
    );
    assert!(world.workload("host").is_none() && !world.protects("192.168.0.1"));
    let standing = world.cluster.pod("host").unwrap().standing;
    assert_eq!(standing, Some(Standing::Outside(Outside::HostNetwork)));
}

#[test]
fn a_pod_with_an_istio_sidecar_is_left_alone_and_named_if_it_is_labelled() {
    let sidecar = ["annotations: {sidecar.istio.io/status: '{}'}", "", ""];
    let mut world = World::new(&(SHOP.to_owned() + &pod("a", "10.0.0.1", sidecar)));
    assert!(world.enrolled().is_empty() && !world.protects("10.0.0.1"));
    let standing = world.cluster.pod("a").unwrap().standing;
    assert_eq!(standing, Some(Standing::Outside(Outside::Sidecar)));
    assert!(
        !world.workload("a").unwrap().in_mesh,
        "its peers take it for a pod outside of the mesh"
    );
    assert_eq!(
        world.findings(),
        [
            "Pod shop/a: metadata.annotations[sidecar.istio.io/status]: it has an Istio sidecar, so the mesh leaves \
          it alone whatever its labels say: restart it without one"
        ]
    );
    assert!(world.apply("kind: Namespace\nmetadata: {name: shop, labels: {}}\n"));
    assert!(world.findings().is_empty(), "nobody asks for it");
    let standing = world.cluster.pod("a").unwrap().standing;
    assert_eq!(standing, Some(Standing::Outside(Outside::NotLabelled)));
}

#[test]
fn our_own_pods_are_left_alone_only_in_our_own_namespace() {
    let own = "labels: {app.kubernetes.io/part-of: sluice}";
    let mut world = World::new(SHOP);
    world.apply(
        "---\nkind: Namespace\nmetadata: {name: sluice-system, labels: {istio.io/dataplane-mode: ambient}}\n\
         ---\nkind: Pod\nmetadata: {namespace: sluice-system, name: own, uid: own, labels: {app.kubernetes.io/part-of: sluice}}\n\
         spec: {nodeName: a}\nstatus: {phase: Running, podIPs: [{ip: 10.0.0.1}]}\n",
    );
    world.apply(&pod("impostor", "10.0.0.2", [own, "", ""]));
    assert_eq!(world.enrolled(), ["impostor"]);
    assert_eq!(world.cluster.pod("own").unwrap().standing, Some(Standing::Outside(Outside::Own)));
}

#[test]
fn a_pod_that_has_ended_frees_its_address_at_once() {
    let mut world = World::new(&(SHOP.to_owned() + &pod("old", "10.0.0.1", ["", "", ""])));
    for phase in ["Succeeded", "Failed"] {
        world.apply(&pod("old", "10.0.0.1", ["", "", ""]));
        assert!(world.protects("10.0.0.1"));
        world.apply(
            &pod("old", "10.0.0.1", ["", "", ""])
                .replace("phase: Running", &format!("phase: {phase}")),
        );
        assert!(!world.protects("10.0.0.1") && world.workload("old").is_none(), "{phase}");
    }
}

#[test]
fn a_namespace_that_goes_before_its_pods_keeps_them_until_they_are_gone() {
    let pods = pod("a", "10.0.0.1", ["", "", ""]);
    let mut world = World::new(&(SHOP.to_owned() + &pods));
    world.delete(SHOP);
    assert_eq!(world.enrolled(), ["a"]);
    world.delete(&pods);
    assert!(world.enrolled().is_empty());
    // A new namespace of that name starts from its own labels.
    world.apply(&("---\nkind: Namespace\nmetadata: {name: shop}\n".to_owned() + &pods));
    assert!(world.enrolled().is_empty());
}

#[test]
fn probe_ports_are_those_that_the_kubelet_connects_to() {
    let containers = "containers: [\
        {ports: [{name: web, containerPort: 8080}, {name: status, containerPort: 9000}], \
         readinessProbe: {httpGet: {port: web}}, livenessProbe: {tcpSocket: {port: 9001}}, \
         startupProbe: {grpc: {port: 9002}}, lifecycle: {preStop: {httpGet: {port: status}}}}, \
        {livenessProbe: {exec: {command: [x]}}, readinessProbe: {httpGet: {port: web}}}, \
        {readinessProbe: {httpGet: {port: 7000, host: example.org}}}], \
        initContainers: [{readinessProbe: {tcpSocket: {port: 1}}}, \
        {restartPolicy: Always, readinessProbe: {tcpSocket: {port: 15021}}}]";
    let world = World::new(&(SHOP.to_owned() + &pod("a", "10.0.0.1", ["", containers, ""])));
    let ports: Vec<_> = world.workload("a").unwrap().probe_ports.iter().copied().collect();
    assert_eq!(ports, [8080, 9000, 9001, 9002, 15021]);
    assert_eq!(
        world.findings(),
        [
            "Pod shop/a: spec.containers[*] probes: no port of the container is named \"web\", so the \
          kubelet cannot probe it: correct the name"
        ]
    );
}

#[test]
fn noise_makes_no_new_snapshot() {
    let mut world = World::new(&(SHOP.to_owned() + &pod("a", "10.0.0.1", ["", "", ""])));
    let noise = pod(
        "a",
        "10.0.0.1",
        [
            "annotations: {ambient.istio.io/redirection: enabled, sluice.dev/captured: 'true', other: x}, \
             managedFields: [{a: b}]",
            "volumes: [{name: x}]",
            "startTime: x, containerStatuses: [{name: x}]",
        ],
    );
    assert!(!world.apply(&noise));
    let record = world.cluster.pod("a").unwrap();
    assert!(record.marks.istios && record.marks.ours);
    assert!(world.apply(&pod("a", "10.0.0.2", ["", "", ""])));
}
