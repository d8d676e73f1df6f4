//! Publishes the roots of the mesh in a `ConfigMap`, for agents to mount.

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

/// The key that Istio uses for the roots.
const KEY: &str = "root-cert.pem";
/// How long a replica waits before it overwrites other roots: they may be new ones that another replica has published
/// and this one has yet to learn of.
const CALM: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(5);

/// What the `ConfigMap` holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Present {
    /// Not known yet.
    #[default]
    Unknown,
    Nothing,
    Roots(String),
}

/// Keeps `root-cert.pem` of a `ConfigMap` what `wanted` says, for as long as the runtime lives. It is asked again and
/// again, with the authority's own roots and what is published, for what is to be there instead, if anything; not
/// before both are known. Other keys of the `ConfigMap` are left alone.
pub fn publish_roots(
    server: &ApiServer,
    namespace: &str,
    name: &str,
    mut ours: watch::Receiver<Option<String>>,
    mut wanted: impl FnMut(&str, Option<&str>) -> Option<String> + Send + 'static,
) {
    let api: Api<ConfigMap> = Api::namespaced(server.0.clone(), namespace);
    let (sender, mut present) = watch::channel(Present::default());
    let (followed, fields) = (api.clone(), format!("metadata.name={name}"));
    tokio::spawn(async move {
        let what =
            ("following the roots' ConfigMap", "get, list and watch on the roots' configmap");
        loop {
            let mut listed = Present::Nothing;
            let take = |event| take(&sender, &mut listed, event);
            events::follow(followed.clone(), &fields, what, take).await;
            tokio::time::sleep(RETRY).await;
        }
    });
    let name = name.to_owned();
    tokio::spawn(async move {
        let mut complaints = Complaints::default();
        loop {
            let (own, published) =
                (ours.borrow_and_update().clone(), present.borrow_and_update().clone());
            let roots = own.and_then(|own| match published {
                Present::Unknown => None,
                Present::Nothing => wanted(&own, None),
                Present::Roots(roots) => wanted(&own, Some(&roots)),
            });
            if let Some(roots) = roots {
                write(&api, &name, &roots, &mut complaints).await;
            }
            tokio::select! {
                changed = ours.changed() => if changed.is_err() { return },
                changed = present.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(RETRY) => {}
            }
            tokio::time::sleep(CALM).await;
        }
    });
}

/// Takes over what is told of the `ConfigMap`; a list that does not hold it says that there is none.
fn take(present: &watch::Sender<Present>, listed: &mut Present, event: Event<ConfigMap>) {
    let text = |found: ConfigMap| {
        let roots = found.data.and_then(|mut data| data.remove(KEY));
        roots.map_or(Present::Nothing, Present::Roots)
    };
    let known = match event {
        Event::Init => {
            *listed = Present::Nothing;
            return;
        }
        Event::InitApply(found) => {
            *listed = text(found);
            return;
        }
        Event::InitDone => listed.clone(),
        Event::Apply(found) => text(found),
        Event::Delete(_) => Present::Nothing,
    };
    present.send_replace(known);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_published_over_roots_that_are_not_known_yet() {
        let (present, mut listed) = (watch::Sender::default(), Present::Nothing);
        let map = |text: &str| {
            let data = BTreeMap::from([(KEY.to_owned(), text.to_owned())]);
            ConfigMap { data: Some(data), ..ConfigMap::default() }
        };
        let mut known = |event| {
            take(&present, &mut listed, event);
            present.borrow().clone()
        };
        assert_eq!(known(Event::Init), Present::Unknown);
        assert_eq!(known(Event::InitApply(map("old"))), Present::Unknown);
        assert_eq!(known(Event::InitDone), Present::Roots("old".to_owned()));
        assert_eq!(known(Event::Apply(map("new"))), Present::Roots("new".to_owned()));
        assert_eq!(known(Event::Delete(map("new"))), Present::Nothing);
        known(Event::Apply(map("again")));
        // It was deleted while nobody listened.
        known(Event::Init);
        assert_eq!(known(Event::InitDone), Present::Nothing);
    }
}
