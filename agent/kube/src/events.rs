//! Follows objects that are not part of the mesh's state, for the controller.

use std::{fmt::Debug, time::Duration};

use futures_util::StreamExt;
use kube::{
    Api, Resource,
    runtime::watcher::{self, Event, watcher},
};
use serde::de::DeserializeOwned;

use crate::client::ApiFault;

/// How long the server keeps a watch open: a connection that died silently is noticed soon after.
const WATCH_SECONDS: u32 = 60;
/// Objects per page of a list; every server can send lists in pages.
const PAGE: u32 = 500;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Logs a failure once, until the reason is another or it works again.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    said: Option<String>,
}

/// Why a kind is not followed any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The server does not know the kind in this version.
    Missing,
}

// === impl Complaints ===

impl Complaints {
    pub(crate) fn fails(&mut self, what: &str, reason: &str) {
        if self.said.as_deref() != Some(reason) {
            tracing::warn!(what, reason, "the API server does not do what is asked; trying again");
            self.said = Some(reason.to_owned());
        }
    }

    pub(crate) fn works(&mut self, what: &str) {
        if self.said.take().is_some() {
            tracing::info!(what, "works again");
        }
    }
}

/// Follows the objects that the field selector `fields` selects (all when empty), and hands each event to `take`.
pub(crate) async fn follow<K>(
    api: Api<K>,
    fields: &str,
    (what, needs): (&str, &str),
    mut take: impl FnMut(Event<K>),
) -> Ended
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
    let config = if fields.is_empty() { config } else { config.fields(fields) };
    let mut events = Box::pin(watcher(api, config));
    let (mut pause, mut complaints) = (FIRST_PAUSE, Complaints::default());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if !matches!(event, Event::Init) {
                    complaints.works(what);
                    pause = FIRST_PAUSE;
                }
                take(event);
            }
            Err(error) => {
                match fault(&error, what, needs) {
                    Fault::Missing => return Ended::Missing,
                    // The watcher lists anew by itself.
                    Fault::Expired => {}
                    Fault::Other(reason) => {
                        complaints.fails(what, &reason);
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(LAST_PAUSE);
                    }
                }
            }
        }
    }
    Ended::Missing
}

enum Fault {
    Missing,
    Expired,
    Other(String),
}

fn fault(error: &watcher::Error, what: &str, needs: &str) -> Fault {
    let said = |error: &kube::Error| {
        let code = if let kube::Error::Api(status) = error { status.code } else { 0 };
        match code {
            404 => Fault::Missing,
            410 => Fault::Expired,
            _ => Fault::Other(ApiFault::new(what, needs, error).to_string()),
        }
    };
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => said(error),
        watcher::Error::WatchError(status) if status.code == 410 => Fault::Expired,
        watcher::Error::WatchError(status) => Fault::Other(status.message.clone()),
        watcher::Error::NoResourceVersion => {
            Fault::Other("the server tells no version of its list".to_owned())
        }
    }
}
