//! Objects in the API server, and a source that follows them.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{Namespace, Pod, Service},
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use sluice_cluster::Settings;
use sluice_kube::{Installation, KubeConfig, KubeSource};
use sluice_mesh::{Snapshot, WorkloadUid};
use tempfile::TempDir;

use crate::server::Server;

/// How long the first list, or a kind that is installed later, may take on a busy machine.
const WITHIN: Duration = Duration::from_secs(90);

pub(crate) const NODE: &str = "node-a";

/// Creates and changes objects.
pub(crate) struct World(pub(crate) Client);

impl World {
    pub(crate) async fn namespace(&self, name: &str, mode: Option<&str>) {
        let api: Api<Namespace> = Api::all(self.0.clone());
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"istio.io/dataplane-mode": mode}},
        });
        let patch = Patch::Apply(namespace);
        api.patch(name, &PatchParams::apply("test").force(), &patch).await.unwrap();
    }

    /// Begins the deletion of a namespace, which nothing but [`World::finalize_namespace`] completes here.
    pub(crate) async fn end_namespace(&self, name: &str) {
        let api: Api<Namespace> = Api::all(self.0.clone());
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Completes the deletion of a namespace as the controller manager would, but with its objects still there.
    pub(crate) async fn finalize_namespace(&self, name: &str) {
        let path = format!("/api/v1/namespaces/{name}/finalize");
        let body = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name}, "spec": {"finalizers": []},
        });
        let request = http::Request::put(path).header("content-type", "application/json");
        let request = request.body(body.to_string().into_bytes()).unwrap();
        self.0.request::<Value>(request).await.unwrap();
    }

    /// Returns how often the API server has refused to write an event, with this code.
    pub(crate) async fn events_refused(&self, code: u16) -> u64 {
        let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
        let metrics = self.0.request_text(request).await.unwrap();
        let code = format!("code=\"{code}\"");
        let counted = metrics.lines().filter(|line| {
            line.starts_with("apiserver_request_total{")
                && line.contains(&code)
                && line.contains("resource=\"events\"")
                && line.contains("verb=\"POST\"")
        });
        counted.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    /// Creates a pod without an address. Returns its UID.
    pub(crate) async fn pod(&self, namespace: &str, name: &str) -> String {
        self.annotated_pod(namespace, name, json!({})).await
    }

    pub(crate) async fn annotated_pod(
        &self,
        namespace: &str,
        name: &str,
        annotations: Value,
    ) -> String {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations},
            "spec": {"nodeName": NODE, "containers": [{
                "name": "c", "image": "none", "env": [{"name": "A", "value": "b"}],
                "readinessProbe": {"httpGet": {"port": 8080}},
            }]},
        }))
        .unwrap();
        api.create(&PostParams::default(), &pod).await.unwrap().metadata.uid.unwrap()
    }

    /// Writes what the pod's node would report.
    pub(crate) async fn runs(&self, namespace: &str, name: &str, address: &str) {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
        let status = json!({"status": {
            "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    pub(crate) async fn annotations(&self, namespace: &str, name: &str) -> Value {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
        json!(api.get(name).await.unwrap().metadata.annotations)
    }

    /// A DaemonSet of one pod, which has the label `app`.
    pub(crate) async fn daemon_set(&self, namespace: &str, name: &str, app: &str) {
        let api: Api<DaemonSet> = Api::namespaced(self.0.clone(), namespace);
        let labels = json!({"app": app});
        let set = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "c", "image": "none"}]},
            }},
        }))
        .unwrap();
        api.create(&PostParams::default(), &set).await.unwrap();
        let status = Patch::Merge(json!({"status": {"desiredNumberScheduled": 1}}));
        api.patch_status(name, &PatchParams::default(), &status).await.unwrap();
    }

    pub(crate) async fn delete_pod(&self, namespace: &str, name: &str) {
        let api: Api<Pod> = Api::namespaced(self.0.clone(), namespace);
        let now = DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
        api.delete(name, &now).await.unwrap();
    }

    /// Creates a service, and the slice that the controller manager would make. Returns the service's address.
    pub(crate) async fn service(
        &self,
        namespace: &str,
        name: &str,
        pod: &str,
        address: &str,
    ) -> String {
        let api: Api<Service> = Api::namespaced(self.0.clone(), namespace);
        let service = serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]},
        }))
        .unwrap();
        let made = api.create(&PostParams::default(), &service).await.unwrap();
        self.post(
            &format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
            &json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{
                    "addresses": [address], "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "name": name, "namespace": namespace, "uid": pod},
                }],
            }),
        )
        .await;
        made.spec.unwrap().cluster_ip.unwrap()
    }

    /// Installs a kind of Istio's policies while the source is running.
    pub(crate) async fn install_policies(&self) {
        let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        self.post(
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            &json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {"name": "authorizationpolicies.security.istio.io"},
                "spec": {
                    "group": "security.istio.io", "scope": "Namespaced",
                    "names": {"plural": "authorizationpolicies", "kind": "AuthorizationPolicy"},
                    "versions": [{"name": "v1", "served": true, "storage": true,
                                  "schema": {"openAPIV3Schema": schema}}],
                },
            }),
        )
        .await;
    }

    /// Denies everything in a namespace, after waiting until the API server serves the kind.
    pub(crate) async fn deny_all(&self, namespace: &str) {
        let path =
            format!("/apis/security.istio.io/v1/namespaces/{namespace}/authorizationpolicies");
        let policy = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "deny"}, "spec": {},
        });
        for _ in 0..100 {
            if self.try_post(&path, &policy).await.is_ok() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the kind is not served");
    }

    async fn post(&self, path: &str, object: &Value) {
        self.try_post(path, object).await.unwrap();
    }

    async fn try_post(&self, path: &str, object: &Value) -> kube::Result<Value> {
        let request = kube::core::Request::new(path);
        let body = serde_json::to_vec(object).unwrap();
        self.0.request(request.create(&PostParams::default(), body).unwrap()).await
    }
}

/// Starts a source that remembers its state in `directory`.
pub(crate) async fn source(server: &Server, directory: &TempDir) -> KubeSource {
    let settings = Settings::new("cluster.local".parse().unwrap());
    let config = KubeConfig {
        installation: Some(Installation {
            namespace: "default".to_owned(),
            daemon_set: "sluice-agent".to_owned(),
            pod: "agent".to_owned(),
        }),
        kubeconfig: Some(server.kubeconfig()),
        node: NODE.to_owned(),
        directory: directory.path().to_owned(),
        settings,
    };
    KubeSource::start(config).await.unwrap()
}

/// Waits for a snapshot of which `is_so` is true, and returns it.
pub(crate) async fn until(
    source: &KubeSource,
    what: &str,
    is_so: impl Fn(&Snapshot) -> bool,
) -> Arc<Snapshot> {
    let mut snapshots = source.snapshots.clone();
    let found = snapshots.wait_for(|snapshot| snapshot.as_deref().is_some_and(&is_so));
    let Ok(found) = tokio::time::timeout(WITHIN, found).await else {
        panic!("{what}: {:?}; {:?}", source.status.status(), source.snapshots.borrow());
    };
    Arc::clone(found.unwrap().as_ref().unwrap())
}

pub(crate) fn enrolled(snapshot: &Snapshot, uid: &str) -> bool {
    let member = snapshot.member(&WorkloadUid(uid.into()));
    member.is_some_and(|member| member.workload.in_mesh && !member.workload.addresses.is_empty())
}
