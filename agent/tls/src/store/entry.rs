//! One identity of the store: its certificate, and when to ask for the next.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use rustls_pki_types::UnixTime;
use sluice_spiffe::SpiffeId;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::Instant,
};

use super::{CertStatus, lock};
use crate::{clock::after, identity::Identity};

/// When the next certificate is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Next {
    /// At a time of day: the half life of the current certificate.
    At(UnixTime),
    /// After a pause: the last request failed.
    Retry(Instant),
}

pub(super) struct Entry {
    pub(super) id: SpiffeId,
    current: ArcSwapOption<Identity>,
    changed: watch::Sender<()>,
    /// Tells the keeper to look at its plan again.
    pub(super) nudge: Notify,
    plan: Mutex<Plan>,
    abandoned: AtomicBool,
    keeper: Mutex<Option<AbortHandle>>,
}

struct Plan {
    next: Next,
    failure: Option<Failure>,
}

/// Why the last request failed.
#[derive(Clone)]
pub(super) struct Failure {
    pub(super) text: String,
    /// Whether the authority refused.
    pub(super) is_refusal: bool,
}

impl Entry {
    pub(super) fn new(id: SpiffeId) -> Self {
        let first = Next::At(UnixTime::since_unix_epoch(Duration::ZERO));
        Self {
            id,
            current: ArcSwapOption::empty(),
            changed: watch::Sender::new(()),
            nudge: Notify::new(),
            plan: Mutex::new(Plan { next: first, failure: None }),
            abandoned: AtomicBool::new(false),
            keeper: Mutex::new(None),
        }
    }

    /// Records the task that [`Self::abandon`] ends.
    pub(super) fn kept_by(&self, keeper: AbortHandle) {
        *lock(&self.keeper) = Some(keeper);
    }

    /// Ends renewal, drops the key, and tells whoever waits.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        let keeper = lock(&self.keeper).take();
        if let Some(keeper) = keeper {
            keeper.abort();
        }
        self.drop_certificate();
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns the certificate, valid or not.
    pub(super) fn current(&self) -> Option<Arc<Identity>> {
        self.current.load_full()
    }

    /// Returns the certificate if it is valid now. If it is not, tells the keeper to get another.
    pub(super) fn usable(&self) -> Option<Arc<Identity>> {
        let identity = self.current.load();
        match &*identity {
            Some(identity) if identity.is_valid() => Some(identity.clone()),
            Some(_) => {
                self.nudge.notify_one();
                None
            }
            None => None,
        }
    }

    pub(super) fn replace(&self, identity: Arc<Identity>) {
        self.current.store(Some(identity));
        self.changed.send_replace(());
    }

    pub(super) fn drop_certificate(&self) {
        self.current.store(None);
        self.changed.send_replace(());
    }

    pub(super) fn next(&self) -> Next {
        lock(&self.plan).next
    }

    pub(super) fn renew_at(&self, next: Next) {
        lock(&self.plan).next = next;
        self.nudge.notify_one();
    }

    pub(super) fn succeeded(&self, next: Next) {
        *lock(&self.plan) = Plan { next, failure: None };
    }

    pub(super) fn failed(&self, failure: Failure, next: Next) {
        *lock(&self.plan) = Plan { next, failure: Some(failure) };
    }

    pub(super) fn last_error(&self) -> Option<String> {
        lock(&self.plan).failure.as_ref().map(|failure| failure.text.clone())
    }

    pub(super) fn status(&self, now: UnixTime) -> CertStatus {
        let certificate = self.current().map(|identity| identity.svid().clone());
        let plan = lock(&self.plan);
        let next_renewal = match plan.next {
            Next::At(time) => time.max(now),
            Next::Retry(at) => after(now, at.saturating_duration_since(Instant::now())),
        };
        let identity = self.id.clone();
        let failure = plan.failure.clone();
        let is_refused = failure.as_ref().is_some_and(|failure| failure.is_refusal);
        let last_error = failure.map(|failure| failure.text);
        CertStatus { identity, certificate, next_renewal, last_error, is_refused }
    }
}
