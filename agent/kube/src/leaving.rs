//! Follows whether Sluice is being uninstalled. The sign is a mark on its own DaemonSet, which goes away with it: the
//! next installation starts without one.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client, ResourceExt, runtime::watcher::Event};

use crate::{config::Installation, events, hub::Hub};

/// The annotation that marks an uninstallation; its value says since when.
pub(crate) const MARK: &str = "sluice.dev/uninstall";
/// The mark has to be known before anything is published: an agent that restarts during an uninstallation must not take
/// its pods in again.
const WHAT: &str = "the mark of an uninstallation";
/// How long to wait for the mark. An agent that may not read it stays in the mesh.
const PATIENCE: Duration = Duration::from_secs(3);

/// Follows the mark for as long as the runtime lives.
pub(crate) fn follow(hub: &Arc<Hub>, client: &Client, installation: &Installation) {
    let Installation { namespace, daemon_set, .. } = installation;
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let fields = format!("metadata.name={daemon_set}");
    hub.expect_first(WHAT);
    let (hub, late) = (Arc::clone(hub), Arc::clone(hub));
    tokio::spawn(async move {
        tokio::time::sleep(PATIENCE).await;
        late.listed(WHAT);
    });
    tokio::spawn(async move {
        let tell = |object: &DaemonSet| {
            hub.cluster().set_leaving(object.annotations().contains_key(MARK));
            hub.changed.notify_one();
        };
        loop {
            let needs = "get, list and watch on its own daemonset (apps)";
            let what = ("following whether Sluice is being uninstalled", needs);
            events::follow(api.clone(), &fields, what, |event| match event {
                Event::InitApply(object) | Event::Apply(object) => tell(&object),
                Event::InitDone => hub.listed(WHAT),
                // Once the DaemonSet is gone, so are we: until then the last state holds.
                Event::Init | Event::Delete(_) => {}
            })
            .await;
            tokio::time::sleep(PATIENCE).await;
        }
    });
}
