//! What a change costs with ten thousand pods, and how much memory they take.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sluice_cluster::{Cluster, Kept, object};

use crate::world::settings;

const PODS: usize = 10_000;
const SERVICES: usize = 1_000;
const POLICIES: usize = 1_000;
const NAMESPACES: usize = 100;
/// How long a change may take on average: far more than it needs, so that a busy machine does not fail the test, but
/// less than a rebuild of everything for each change.
const CHANGE_LIMIT: Duration = Duration::from_millis(60);

fn keep<T: Kept + serde::de::DeserializeOwned>(cluster: &mut Cluster, object: Value) {
    serde_json::from_value::<T>(object).unwrap().keep(cluster);
}

fn pod(number: usize, ready: &str) -> Value {
    let (a, b) = (number / 250, number % 250 + 1);
    json!({
        "metadata": {
            "namespace": format!("ns-{}", number % NAMESPACES), "name": format!("web-{number:08x}-abcde"),
            "uid": format!("00000000-0000-4000-8000-{number:012}"), "resourceVersion": "1",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {
                "app": format!("web-{}", number % SERVICES), "pod-template-hash": format!("{:08x}", number % SERVICES),
                "app.kubernetes.io/part-of": "shop", "version": "v1",
            },
        },
        "spec": {
            "nodeName": format!("node-{}", number % 500), "serviceAccountName": format!("web-{}", number % SERVICES),
            "containers": [{"readinessProbe": {"httpGet": {"port": 8080}}}],
        },
        "status": {
            "phase": "Running", "podIPs": [{"ip": format!("10.{a}.0.{b}")}],
            "conditions": [{"type": "Ready", "status": ready}],
        },
    })
}

fn slice(number: usize) -> Value {
    let endpoints: Vec<_> = (0..PODS / SERVICES)
        .map(|replica| {
            let pod = number + replica * SERVICES;
            let (a, b) = (pod / 250, pod % 250 + 1);
            json!({
                "addresses": [format!("10.{a}.0.{b}")], "conditions": {"ready": true},
                "nodeName": format!("node-{}", pod % 500), "zone": format!("zone-{}", pod % 3),
                "targetRef": {"kind": "Pod", "uid": format!("00000000-0000-4000-8000-{pod:012}")},
            })
        })
        .collect();
    json!({
        "metadata": {
            "namespace": format!("ns-{}", number % NAMESPACES), "name": format!("web-{number}-abcde"),
            "labels": {"kubernetes.io/service-name": format!("web-{number}")},
        },
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": endpoints,
    })
}

fn fill(cluster: &mut Cluster) {
    for number in 0..NAMESPACES {
        let labels = json!({"istio.io/dataplane-mode": "ambient"});
        keep::<object::Namespace>(
            cluster,
            json!({"metadata": {"name": format!("ns-{number}"), "labels": labels}}),
        );
    }
    for number in 0..PODS {
        keep::<object::Pod>(cluster, pod(number, "True"));
    }
    for number in 0..SERVICES {
        let namespace = format!("ns-{}", number % NAMESPACES);
        let (a, b) = (number / 250, number % 250 + 1);
        keep::<object::Service>(
            cluster,
            json!({
                "metadata": {"namespace": namespace, "name": format!("web-{number}")},
                "spec": {"clusterIPs": [format!("10.200.{a}.{b}")], "selector": {"app": "x"}, "ports": [{"port": 80}]},
            }),
        );
        keep::<object::EndpointSlice>(cluster, slice(number));
    }
    for number in 0..POLICIES {
        let app = format!("web-{number}");
        keep::<object::AuthorizationPolicy>(
            cluster,
            json!({
                "metadata": {"namespace": format!("ns-{}", number % NAMESPACES), "name": app},
                "spec": {
                    "selector": {"matchLabels": {"app": app}},
                    "rules": [{"from": [{"source": {"namespaces": ["a", "b"]}}], "to": [{"operation": {"ports": ["8080"]}}]}],
                },
            }),
        );
    }
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn a_change_costs_little_however_many_pods_there_are() {
    let before = resident();
    let started = Instant::now();
    let mut cluster = Cluster::new(settings());
    fill(&mut cluster);
    let filled = started.elapsed();
    let first = cluster.build(false).unwrap().unwrap();
    let built = started.elapsed().saturating_sub(filled);
    assert_eq!(first.snapshot.members().len(), PODS);
    let weight = (resident().saturating_sub(before)) / 1024;
    let mut slowest = Duration::ZERO;
    let mut total = Duration::ZERO;
    let mut last = first;
    for round in 0..100 {
        let ready = if round / 10 % 2 == 0 { "False" } else { "True" };
        let started = Instant::now();
        keep::<object::Pod>(&mut cluster, pod(round % 10, ready));
        // The last view is held until the next is there, as in an agent.
        last = cluster.build(false).unwrap().unwrap();
        slowest = slowest.max(started.elapsed());
        total += started.elapsed();
    }
    let remembered = Instant::now();
    drop(last);
    let text = cluster.members_text().unwrap();
    println!(
        "filled in {filled:?}, first snapshot in {built:?}, {weight} KiB; a change: mean {:?}, slowest \
         {slowest:?}; {} KiB remembered in {:?}",
        total / 100,
        text.len() / 1024,
        remembered.elapsed(),
    );
    assert!(total / 100 < CHANGE_LIMIT);
}
