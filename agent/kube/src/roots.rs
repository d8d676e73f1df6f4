//! The roots of the mesh in a `ConfigMap`, for agents to mount.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
    runtime::watcher::Event,
};
use tokio::sync::watch;

use crate::{
    ApiServer,
    client::{ApiFault, within},
    conditions::MANAGER,
    events::{self, Complaints},
};

/// Istio's name for it.
const KEY: &str = "root-cert.pem";
/// Time for a replica to learn of new roots that another has published, before it takes them for a mistake.
const CALM: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);

/// Keeps `root-cert.pem` of a `ConfigMap` what `roots` is, for as long as the runtime lives; nothing happens while
/// that is `None`. Other keys of the `ConfigMap` are left alone.
pub fn publish_roots(
    server: &ApiServer,
    namespace: &str,
    name: &str,
    mut roots: watch::Receiver<Option<String>>,
) {
    let api: Api<ConfigMap> = Api::namespaced(server.0.clone(), namespace);
    let (sender, mut present) = watch::channel(None);
    let (followed, fields) = (api.clone(), format!("metadata.name={name}"));
    tokio::spawn(async move {
        let what =
            ("following the roots' ConfigMap", "get, list and watch on the roots' configmap");
        loop {
            events::follow(followed.clone(), &fields, what, |event| take(&sender, event)).await;
            tokio::time::sleep(RETRY).await;
        }
    });
    let name = name.to_owned();
    tokio::spawn(async move {
        let mut complaints = Complaints::default();
        loop {
            let wanted = roots.borrow_and_update().clone();
            let is_right = *present.borrow_and_update() == wanted;
            if let (Some(wanted), false) = (wanted, is_right) {
                write(&api, &name, &wanted, &mut complaints).await;
            }
            tokio::select! {
                changed = roots.changed() => if changed.is_err() { return },
                changed = present.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY) => {}
            }
            tokio::time::sleep(CALM).await;
        }
    });
}

fn take(present: &watch::Sender<Option<String>>, event: Event<ConfigMap>) {
    match event {
        Event::InitApply(found) | Event::Apply(found) => {
            present.send_replace(found.data.and_then(|mut data| data.remove(KEY)));
        }
        Event::Delete(_) => drop(present.send_replace(None)),
        Event::Init | Event::InitDone => {}
    }
}

async fn write(api: &Api<ConfigMap>, name: &str, roots: &str, complaints: &mut Complaints) {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map.data = Some(BTreeMap::from([(KEY.to_owned(), roots.to_owned())]));
    let what = "publishing the roots";
    let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(&map));
    match within(api.patch(name, &params, &patch)).await {
        Ok(_) => {
            complaints.works(what);
            tracing::info!(config_map = name, "published the roots");
        }
        Err(error) => {
            let needs = "create and patch on the roots' configmap";
            complaints.fails(what, &ApiFault::new(what, needs, &error).to_string());
        }
    }
}
