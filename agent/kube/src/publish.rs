//! Puts what has come into force: gathers changes, makes snapshots and remembers them.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tokio::time::{sleep_until, timeout};

use crate::{
    disk::{Memory, Part},
    hub::Hub,
};

/// How long nothing may come before a burst of changes is over. A burst makes one snapshot.
const CALM: Duration = Duration::from_millis(50);
/// The longest time that a burst may last.
const PATIENCE: Duration = Duration::from_millis(200);
/// After a snapshot, changes are gathered for this many times as long as it took to make it. Where there are many pods
/// and always some change, snapshots then cost about a hundredth of a core.
const REST: u32 = 100;
/// The longest such rest, so that changes still count within a second. Whoever waits for a change does not wait for the
/// rest.
const LONGEST_REST: Duration = Duration::from_millis(600);
/// How long to wait for the API server after a start before the remembered state is served.
const GRACE: Duration = Duration::from_secs(3);
/// The shortest time between two writes of the rules.
const RULES_INTERVAL: Duration = Duration::from_secs(1);
/// The shortest time between two writes of the members. A pod that starts after the last write is refused by an agent
/// that starts again without the API server.
const MEMBERS_INTERVAL: Duration = Duration::from_secs(1);
/// Where there are many pods, the time between two writes of the members is this many times as long as it takes to
/// encode them.
const MEMBERS_REST: u32 = 1000;
/// The longest time between two writes of the members.
const LONGEST_MEMBERS_INTERVAL: Duration = Duration::from_mins(1);

/// Makes snapshots for as long as the source lives.
pub(crate) struct Publisher {
    hub: Arc<Hub>,
    memory: Memory,
    /// Whether the state of an earlier run was restored.
    remembers: bool,
    started: Instant,
    /// When the rest after the last snapshot ends.
    rested: Instant,
    rules: Due,
    members: Due,
    /// [`Cluster::decisions`](sluice_cluster::Cluster::decisions) when the rules were last written.
    decisions: Option<u64>,
}

/// When a part is to be written.
struct Due {
    interval: Duration,
    last: Option<Instant>,
    /// Whether something has changed since.
    pending: bool,
}

// === impl Due ===

impl Due {
    fn every(interval: Duration) -> Self {
        Self { interval, last: None, pending: false }
    }

    /// Returns when the part is to be written, if it has changed.
    fn at(&self) -> Option<Instant> {
        let at = self.last.map_or_else(Instant::now, |last| last + self.interval);
        self.pending.then_some(at)
    }

    fn take(&mut self) -> bool {
        let is_due = self.at().is_some_and(|at| at <= Instant::now());
        if is_due {
            *self = Self { last: Some(Instant::now()), pending: false, ..*self };
        }
        is_due
    }
}

// === impl Publisher ===

impl Publisher {
    pub(crate) fn new(hub: Arc<Hub>, memory: Memory, remembers: bool) -> Self {
        Self {
            hub,
            memory,
            remembers,
            started: Instant::now(),
            rested: Instant::now(),
            rules: Due::every(RULES_INTERVAL),
            members: Due::every(MEMBERS_INTERVAL),
            decisions: None,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            let arrived = self.burst().await;
            let is_complete = self.hub.is_complete();
            let may_remember = self.remembers && self.started.elapsed() >= GRACE;
            if is_complete || may_remember {
                self.publish(!is_complete, arrived).await;
            }
        }
    }

    /// Waits for a burst of changes to end, or until something else is due. Returns when the first change arrived.
    async fn burst(&self) -> Instant {
        let grace = self.started + GRACE;
        let waits_for_grace = self.remembers && Instant::now() < grace;
        let wakes = [self.rules.at(), self.members.at(), waits_for_grace.then_some(grace)];
        let far = Instant::now() + Duration::from_hours(1);
        let wake = wakes.into_iter().flatten().min().unwrap_or(far);
        tokio::select! {
            () = self.hub.changed.notified() => {}
            () = self.hub.hurry.notified() => return Instant::now(),
            () = sleep_until(wake.into()) => return Instant::now(),
        }
        let arrived = Instant::now();
        while arrived.elapsed() < PATIENCE {
            tokio::select! {
                calm = timeout(CALM, self.hub.changed.notified()) => {
                    if calm.is_err() {
                        break;
                    }
                }
                () = self.hub.hurry.notified() => return arrived,
            }
        }
        tokio::select! {
            () = sleep_until(self.rested.into()) => {}
            () = self.hub.hurry.notified() => {}
        }
        arrived
    }

    async fn publish(&mut self, provisional: bool, arrived: Instant) {
        let started = Instant::now();
        let (built, decisions, is_leaving) = {
            let mut cluster = self.hub.cluster();
            (cluster.build(provisional), cluster.decisions(), cluster.is_leaving())
        };
        self.rested = Instant::now() + (started.elapsed() * REST).min(LONGEST_REST);
        let view = match built {
            Ok(view) => view,
            Err(error) => {
                let reason = format!("BUG: {error}");
                return self.hub.failed("making a snapshot of the cluster", reason);
            }
        };
        if is_leaving {
            // The next installation must not begin with what this one knew.
            self.forget().await;
        } else if !provisional {
            self.rules.pending |= self.decisions != Some(decisions);
            self.members.pending |= view.is_some();
            // Written before it is in force: a crash in between then forgets no rule.
            self.remember(decisions).await;
        }
        let Some(view) = view else { return };
        self.hub.status.send_modify(|status| {
            let status = Arc::make_mut(status);
            status.version += 1;
            status.loaded_at = Some(SystemTime::now());
            status.is_provisional = provisional;
            status.last_delay = arrived.elapsed();
            status.standings = view.standings;
            if *status.findings != *view.findings {
                status.findings = view.findings.into();
            }
            if *status.policies != *view.policies {
                status.policies = view.policies.into();
            }
        });
        self.hub.snapshots.send_replace(Some(view.snapshot));
    }

    async fn forget(&mut self) {
        let memory = self.memory.clone();
        let forgotten = tokio::task::spawn_blocking(move || memory.forget()).await;
        let what = "forgetting the cluster on disk";
        match forgotten {
            Ok(Ok(())) => self.hub.works(what),
            Ok(Err(error)) => self.hub.failed(what, error.to_string()),
            Err(error) => self.hub.failed(what, format!("BUG: {error}")),
        }
    }

    async fn remember(&mut self, decisions: u64) {
        let mut texts = Vec::new();
        if self.rules.take() {
            self.decisions = Some(decisions);
            texts.push((Part::Rules, self.hub.cluster().rules_text()));
        }
        if self.members.take() {
            let started = Instant::now();
            texts.push((Part::Members, self.hub.cluster().members_text()));
            self.members.interval = (started.elapsed() * MEMBERS_REST)
                .clamp(MEMBERS_INTERVAL, LONGEST_MEMBERS_INTERVAL);
        }
        for (part, text) in texts {
            let memory = self.memory.clone();
            let kept = tokio::task::spawn_blocking(move || {
                memory.keep(part, &text.map_err(std::io::Error::other)?)
            });
            let what = "remembering the cluster on disk";
            match kept.await {
                Ok(Ok(())) => self.hub.works(what),
                Ok(Err(error)) => self.hub.failed(what, error.to_string()),
                Err(error) => self.hub.failed(what, format!("BUG: {error}")),
            }
        }
    }
}
