//! A restart remembers what was known before it.

use sluice_cluster::{Cluster, RestoreError};

use crate::world::{SHOP, World, pod, settings};

const OBJECTS: &str = "\
---
kind: Node
metadata: {name: a, labels: {topology.kubernetes.io/zone: west}}
---
kind: Service
metadata: {namespace: shop, name: web}
spec: {clusterIPs: [10.96.0.1], selector: {app: web}, sessionAffinity: ClientIP, ports: [{port: 80}]}
---
kind: EndpointSlice
metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{port: 8080}]
endpoints: [{addresses: [10.0.0.1], targetRef: {kind: Pod, uid: a}}]
---
kind: DestinationRule
metadata: {namespace: shop, name: r}
spec: {host: web, trafficPolicy: {tls: {mode: DISABLE}}}
---
kind: AuthorizationPolicy
metadata: {namespace: shop, name: good}
spec: {rules: [{to: [{operation: {ports: ['8080']}}]}]}
---
kind: AuthorizationPolicy
metadata: {namespace: shop, name: bad}
spec: {rulez: []}
";

fn world() -> World {
    let annotated = [
        "annotations: {sluice.dev/exclude-outbound-ports: '1,x', kubernetes.io/config.mirror: m}",
        "",
        "",
    ];
    let sidecar = ["annotations: {sidecar.istio.io/status: x}", "", ""];
    let pods = pod("a", "10.0.0.1", annotated) + &pod("b", "10.0.0.2", sidecar);
    World::new(&(SHOP.to_owned() + &pods + OBJECTS))
}

#[test]
fn a_restart_knows_the_same() {
    let world = world();
    let (rules, members) =
        (world.cluster.rules_text().unwrap(), world.cluster.members_text().unwrap());
    let mut later = Cluster::new(settings());
    later.restore(&rules, &members).unwrap();
    let view = later.build(true).unwrap().unwrap();
    assert!(view.snapshot.is_provisional());
    // The API server's confirmation is a change: from now on, what is missing may be removed.
    assert!(!later.build(false).unwrap().unwrap().snapshot.is_provisional());
    assert!(later.build(false).unwrap().is_none());
    let known = |snapshot: &sluice_mesh::Snapshot| {
        let mut workloads: Vec<_> =
            snapshot.members().iter().map(|member| member.workload.clone()).collect();
        workloads.sort_by(|one, other| one.uid.cmp(&other.uid));
        let direct: std::collections::BTreeSet<_> = snapshot.direct_destinations().collect();
        let policies: Vec<_> =
            snapshot.policies().objects().iter().map(|(id, _)| id.clone()).collect();
        format!("{workloads:?} {:?} {direct:?} {policies:?}", snapshot.services())
    };
    assert_eq!(known(&view.snapshot), known(world.snapshot()));
    assert!(known(&view.snapshot).contains("west"));
    // The policy that could not be read still closes its namespace.
    let mut refusals = view.standings.iter().filter_map(|standing| standing.refused.as_ref());
    assert!(refusals.any(|said| said.to_string().contains("no good version")));
}

#[test]
fn a_state_from_before_there_were_some_fields_is_still_read() {
    let world = world();
    let (rules, members) =
        (world.cluster.rules_text().unwrap(), world.cluster.members_text().unwrap());
    let mut members: serde_json::Value = serde_json::from_slice(&members).unwrap();
    for pod in members["pods"].as_array_mut().unwrap() {
        let fields = pod.as_object_mut().unwrap();
        for name in ["static_uid", "has_sidecar", "marks"] {
            assert!(fields.remove(name).is_some(), "{name}");
        }
    }
    for service in members["services"].as_array_mut().unwrap() {
        assert!(service.as_object_mut().unwrap().remove("balanced").is_some());
    }
    let mut later = Cluster::new(settings());
    later.restore(&rules, members.to_string().as_bytes()).unwrap();
    assert_eq!(later.pod_count(), 2);
}

#[test]
fn what_is_damaged_or_of_another_version_is_refused_whole() {
    let world = world();
    let rules = world.cluster.rules_text().unwrap();
    let members = world.cluster.members_text().unwrap();
    let half = members.len() / 2;
    let other = String::from_utf8(rules.clone()).unwrap().replace("\"format\":1", "\"format\":2");
    let mut later = Cluster::new(settings());
    assert!(matches!(later.restore(&rules, &members[..half]), Err(RestoreError::Damaged(_))));
    assert!(matches!(later.restore(other.as_bytes(), &members), Err(RestoreError::Format(2))));
    assert!(later.restore(b"", &members).is_err());
    assert_eq!(later.pod_count(), 0);
}
