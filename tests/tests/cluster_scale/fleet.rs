//! Pods, services and policies of a large cluster, on nodes that nobody runs.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sluice_tests::{
    Cluster,
    cluster::{Api, Away, Line, Namespace},
};

const NODES: usize = 50;
const NAMESPACES: usize = 10;
const PODS_OF_A_SERVICE: usize = 10;
const ACCOUNTS: usize = 10;
const IMAGE: &str = "nobody.example/runs-this";

/// The objects of the large cluster, deleted when dropped.
pub(crate) struct Fleet<'a> {
    cluster: &'a Cluster,
    api: Api,
    pods: usize,
    names: Vec<Namespace>,
    /// Kept away, because the controllers would find that nobody runs the nodes, and take the pods from them.
    _controllers: Away<'a>,
}

fn namespace(number: usize) -> String {
    format!("scale-{}", number % NAMESPACES)
}

fn address(pod: usize) -> String {
    format!("100.{}.{}.{}", 64 + pod / 40_000, pod / 200 % 200, pod % 200 + 1)
}

fn node(pod: usize) -> String {
    format!("fake-{}", pod % NODES)
}

/// Returns the number of a pod's service, whose pods are all in one namespace.
fn service(pod: usize) -> usize {
    pod / PODS_OF_A_SERVICE
}

impl<'a> Fleet<'a> {
    /// Makes namespaces of the mesh, nodes and accounts, and keeps the cluster's controllers away.
    pub(crate) fn found(cluster: &'a Cluster, pods: usize) -> Result<Self> {
        let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/sluice/crds");
        cluster.kubectl(&["apply", "-f", chart])?;
        let mut names = Vec::new();
        for number in 0..NAMESPACES {
            let made = cluster.namespace(&namespace(number))?;
            let name = made.name();
            cluster.kubectl(&["label", "namespace", name, "istio.io/dataplane-mode=ambient"])?;
            names.push(made);
        }
        let controllers = cluster.away("control/kube-controller-manager")?;
        let fleet =
            Self { cluster, api: Api::open(cluster)?, pods, names, _controllers: controllers };
        fleet.api.each(NAMESPACES * ACCOUNTS, |line, number| {
            let path = format!("/api/v1/namespaces/{}/serviceaccounts", namespace(number));
            let name = format!("account-{}", number / NAMESPACES);
            line.create(&path, &json!({ "metadata": { "name": name } })).map(drop)
        })?;
        fleet.api.each(NODES, |line, number| {
            let labels = json!({
                "sluice.dev/fake": "true", "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
            });
            let metadata = json!({ "name": node(number), "labels": labels });
            line.create("/api/v1/nodes", &json!({ "metadata": metadata })).map(drop)
        })?;
        Ok(fleet)
    }

    /// Makes all pods, and a service and a policy for every ten of them.
    pub(crate) fn populate(&self) -> Result<()> {
        self.api.each(self.services(), |line, number| {
            let mut endpoints = Vec::new();
            for pod in number * PODS_OF_A_SERVICE..(number + 1) * PODS_OF_A_SERVICE {
                let uid = make_pod(line, pod)?;
                endpoints.push(endpoint(pod, &uid, true));
            }
            make_service(line, number, &endpoints)
        })
    }

    pub(crate) fn services(&self) -> usize {
        self.pods / PODS_OF_A_SERVICE
    }

    /// Opens a connection for [`Self::change`].
    pub(crate) fn line(&self) -> Result<Line> {
        self.api.line()
    }

    /// Makes one change of the kinds that a busy cluster has; four kinds take turns.
    pub(crate) fn change(&self, line: &mut Line, turn: usize) -> Result<()> {
        let pod = turn / 4 * 7 % self.pods;
        let (number, space) = (service(pod), namespace(service(pod)));
        let path = format!("/api/v1/namespaces/{space}/pods/web-{number}-5d4f8c7b9-{pod}");
        match turn % 4 {
            0 => set_ready(line, pod, false),
            1 => {
                let labels = json!({ "metadata": { "labels": { "turn": turn.to_string() } } });
                line.patch(&path, &labels).map(drop)
            }
            2 => {
                line.delete(&path)?;
                make_pod(line, pod).map(drop)
            }
            _ => {
                let slice = format!(
                    "/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices/web-{number}"
                );
                let endpoints: Vec<_> = (0..PODS_OF_A_SERVICE)
                    .map(|replica| {
                        let pod = number * PODS_OF_A_SERVICE + replica;
                        endpoint(pod, "00000000-0000-4000-8000-000000000000", turn % 8 > 4)
                    })
                    .collect();
                line.patch(&slice, &json!({ "endpoints": endpoints })).map(drop)
            }
        }
    }
}

fn make_pod(line: &mut Line, pod: usize) -> Result<String> {
    let space = namespace(service(pod));
    let path = format!("/api/v1/namespaces/{space}/pods");
    let app = format!("web-{}", service(pod));
    let labels = json!({
        "app": app, "pod-template-hash": "5d4f8c7b9", "version": "v1", "app.kubernetes.io/part-of": "shop",
    });
    let probe = json!({ "httpGet": { "path": "/", "port": 8080 } });
    let container = json!({
        "name": "web", "image": IMAGE, "readinessProbe": probe, "env": [{ "name": "A", "value": "b" }],
        "ports": [{ "containerPort": 8080 }],
    });
    let made = line.create(
        &path,
        &json!({
            "metadata": { "name": format!("{app}-5d4f8c7b9-{pod}"), "labels": labels },
            "spec": {
                "nodeName": node(pod), "serviceAccountName": format!("account-{}", pod % ACCOUNTS),
                "terminationGracePeriodSeconds": 0, "containers": [container],
                "tolerations": [{ "operator": "Exists" }],
            },
        }),
    )?;
    set_ready(line, pod, true)?;
    let uid = made.pointer("/metadata/uid").and_then(Value::as_str);
    Ok(uid.context("a pod without UID")?.to_owned())
}

fn make_service(line: &mut Line, number: usize, endpoints: &[Value]) -> Result<()> {
    let (space, app) = (namespace(number), format!("web-{number}"));
    let port = json!({ "name": "http", "port": 80, "targetPort": 8080 });
    line.create(
        &format!("/api/v1/namespaces/{space}/services"),
        &json!({
            "metadata": { "name": app }, "spec": { "selector": { "app": app }, "ports": [port] },
        }),
    )?;
    line.create(
        &format!("/apis/discovery.k8s.io/v1/namespaces/{space}/endpointslices"),
        &json!({
            "metadata": { "name": app, "labels": { "kubernetes.io/service-name": app } },
            "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080 }],
            "endpoints": endpoints,
        }),
    )?;
    let from =
        json!([{ "source": { "principals": [format!("cluster.local/ns/{space}/sa/account-1")] } }]);
    line.create(
        &format!("/apis/security.istio.io/v1/namespaces/{space}/authorizationpolicies"),
        &json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": { "name": app },
            "spec": {
                "selector": { "matchLabels": { "app": app } },
                "rules": [{ "from": from, "to": [{ "operation": { "ports": ["8080"] } }] }],
            },
        }),
    )?;
    Ok(())
}

fn set_ready(line: &mut Line, pod: usize, ready: bool) -> Result<()> {
    let name = format!("web-{}-5d4f8c7b9-{pod}", service(pod));
    let path = format!("/api/v1/namespaces/{}/pods/{name}", namespace(service(pod)));
    let ready = if ready { "True" } else { "False" };
    let condition = |kind| json!({ "type": kind, "status": ready });
    let status = json!({
        "phase": "Running", "podIP": address(pod), "podIPs": [{ "ip": address(pod) }],
        "conditions": [condition("Ready"), condition("ContainersReady")],
    });
    line.patch(&format!("{path}/status"), &json!({ "status": status })).map(drop)
}

fn endpoint(pod: usize, uid: &str, ready: bool) -> Value {
    let reference = json!({ "kind": "Pod", "namespace": namespace(service(pod)), "uid": uid });
    json!({
        "addresses": [address(pod)], "conditions": { "ready": ready, "serving": ready },
        "nodeName": node(pod), "zone": format!("zone-{}", pod % NODES % 3), "targetRef": reference,
    })
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        self.names.clear();
        let nodes = ["delete", "nodes", "-l", "sluice.dev/fake=true", "--wait=false"];
        if let Err(error) = self.cluster.kubectl(&nodes) {
            sluice_tests::cleanup::report(&format!("the fake nodes stay: {error:#}"));
        }
    }
}
