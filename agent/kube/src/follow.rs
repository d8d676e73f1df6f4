//! Lists and then watches one kind of object, for as long as the source lives.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use kube::{
    Api, Client,
    core::Status,
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;
use sluice_cluster::Kept;

use crate::{hub::Hub, resource::Resource, watched::Watched};

/// How long the server keeps a watch open: a connection that died silently is noticed soon after.
const WATCH_SECONDS: u32 = 60;
/// Objects per page where the server cannot stream a list.
const PAGE: u32 = 200;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How long to wait before a kind that the cluster does not know is asked for again.
const MISSING_PAUSE: Duration = Duration::from_secs(15);
/// How long a kind must be unknown before its known objects count as gone: a server that is starting may not know it
/// yet.
const MISSING_TIME: Duration = Duration::from_mins(1);

/// Follows one kind.
pub(crate) struct Follow<T> {
    hub: Arc<Hub>,
    client: Client,
    resource: &'static Resource,
    what: String,
    /// Whether the server is asked to send its list as a stream, which spares both sides memory.
    streams: bool,
    /// Counts the versions of the kind that were tried.
    attempt: usize,
    missing_since: Option<Instant>,
    /// The keys that the list under way has named so far.
    listed: Option<HashSet<String>>,
    pause: Duration,
    kind: std::marker::PhantomData<fn() -> T>,
}

/// What to do after an error.
enum Then {
    /// Go on with the same watcher.
    On,
    /// Start a new watcher.
    Anew,
}

// === impl Follow ===

impl<T> Follow<T>
where
    T: Kept + DeserializeOwned + Clone + std::fmt::Debug + Send + 'static,
{
    pub(crate) fn start(hub: &Arc<Hub>, client: &Client, resource: &'static Resource) {
        hub.expect(T::KIND, resource);
        let mut follow = Self {
            hub: Arc::clone(hub),
            client: client.clone(),
            resource,
            what: format!("following {}", resource.name()),
            streams: true,
            attempt: 0,
            missing_since: None,
            listed: None,
            pause: FIRST_PAUSE,
            kind: std::marker::PhantomData,
        };
        tokio::spawn(async move {
            loop {
                follow.run().await;
            }
        });
    }

    /// Follows until another strategy or version is to be tried.
    async fn run(&mut self) {
        let api: Api<Watched<T>> =
            Api::all_with(self.client.clone(), &self.resource.api(self.attempt));
        let config = watcher::Config::default().timeout(WATCH_SECONDS);
        let config = if self.streams { config.streaming_lists() } else { config.page_size(PAGE) };
        let mut events = Box::pin(watcher(api, config));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => self.take(event),
                Err(error) => {
                    if matches!(self.failed(&error).await, Then::Anew) {
                        return;
                    }
                }
            }
        }
    }

    fn take(&mut self, event: Event<Watched<T>>) {
        let mut cluster = self.hub.cluster();
        match event {
            Event::Init => {
                self.listed = Some(HashSet::new());
                return;
            }
            Event::InitApply(Watched { object, .. }) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(T::key(object.meta()));
                }
                object.keep(&mut cluster);
            }
            Event::InitDone => {
                if let Some(listed) = self.listed.take() {
                    T::retain(&mut cluster, &listed);
                }
                drop(cluster);
                self.pause = FIRST_PAUSE;
                self.missing_since = None;
                self.hub.works(&self.what);
                self.hub.listed(T::KIND);
                return;
            }
            Event::Apply(Watched { object, .. }) => object.keep(&mut cluster),
            Event::Delete(Watched { object, .. }) => T::forget(&mut cluster, object.meta()),
        }
        drop(cluster);
        if self.listed.is_none() {
            self.pause = FIRST_PAUSE;
            self.hub.works(&self.what);
        }
        self.hub.changed.notify_one();
    }

    async fn failed(&mut self, error: &watcher::Error) -> Then {
        match status_of(error) {
            Some(status) if status.code == 410 => return Then::On,
            // "sendInitialEvents is forbidden": older servers, or the feature is off.
            Some(status) if self.streams && matches!(status.code, 400 | 422) => {
                self.streams = false;
                return Then::Anew;
            }
            Some(status) if status.code == 404 && self.resource.is_custom => {
                self.missing().await;
                return Then::Anew;
            }
            _ => {}
        }
        self.hub.failed(&self.what, reason(error, self.resource));
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        Then::On
    }

    /// Moves on to another version, because the cluster does not know this one. When no version is known, the kind
    /// counts as having no objects; while some are known, only after [`MISSING_TIME`].
    async fn missing(&mut self) {
        self.attempt += 1;
        if !self.attempt.is_multiple_of(self.resource.version_count()) {
            return;
        }
        let since = *self.missing_since.get_or_insert_with(Instant::now);
        let is_gone = since.elapsed() >= MISSING_TIME;
        let knows_some = T::any(&self.hub.cluster());
        if is_gone || !knows_some {
            T::retain(&mut self.hub.cluster(), &HashSet::new());
            self.hub.works(&self.what);
            self.hub.listed(T::KIND);
        } else {
            let reason = "the API server does not know the kind; is it starting?".to_owned();
            self.hub.failed(&self.what, reason);
        }
        tokio::time::sleep(MISSING_PAUSE).await;
    }
}

fn status_of(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status)
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => Some(status),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => None,
    }
}

/// Describes an error and what to do about it.
fn reason(error: &watcher::Error, resource: &Resource) -> String {
    let Some(status) = status_of(error) else {
        return crate::client::innermost(error);
    };
    match status.code {
        401 => format!("{}: renew the credentials", status.message),
        403 => format!(
            "{}: grant get, list and watch on {} to the agent's service account",
            status.message,
            resource.name()
        ),
        _ => status.message.clone(),
    }
}
