//! Elects one replica among several, by a Lease (coordination.k8s.io/v1).
//!
//! The holder of the Lease renews it. Another replica may take it after seeing no renewal for its whole duration, by
//! that replica's own clock. A holder that cannot renew stops before that. Each write carries the version that was
//! read: of two that try at once, one fails.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use tokio::sync::{oneshot, watch};

use crate::{ApiServer, client::ApiFault, events::Complaints};

const DURATION: Duration = Duration::from_secs(15);
const RENEWAL: Duration = Duration::from_secs(5);
/// A holder that could not renew for this long gives up, well before another may take the Lease.
const DEADLINE: Duration = Duration::from_secs(10);
/// How often waiting replicas look at the Lease, and how long one attempt may take.
const LOOK: Duration = Duration::from_secs(2);
const NEEDS: &str = "get, create and update on leases in the controller's namespace";
const WHAT: &str = "electing the replica that writes";

/// Whether this replica leads, now and later.
pub type Lead = watch::Receiver<bool>;

/// A replica's part in an election, which ends when this is dropped.
pub struct Election {
    /// Whether this replica leads.
    pub lead: Lead,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<()>,
}

struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    lead: watch::Sender<bool>,
    /// When this replica last wrote the Lease.
    renewed: Option<Instant>,
    /// The version of the Lease while another holds it, and when that version was first seen.
    seen: Option<(Option<String>, Instant)>,
    complaints: Complaints,
}

// === impl Election ===

impl Election {
    /// Takes part, as `identity`, in the election that the Lease `namespace`/`name` decides. No other replica may have
    /// the same identity.
    pub fn join(server: &ApiServer, namespace: &str, name: &str, identity: String) -> Self {
        let (sender, lead) = watch::channel(false);
        let candidate = Candidate {
            api: Api::namespaced(server.0.clone(), namespace),
            name: name.to_owned(),
            identity,
            lead: sender,
            renewed: None,
            seen: None,
            complaints: Complaints::default(),
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(candidate.run(stopped));
        Self { lead, stop: Some(stop), task }
    }

    /// Gives the Lease back: another replica then need not wait for its end.
    pub async fn leave(mut self) {
        drop(self.stop.take());
        // If this is not done in time, the Lease ends by itself.
        drop(tokio::time::timeout(LOOK, &mut self.task).await);
    }
}

// === impl Candidate ===

impl Candidate {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let is_leading = self.renewed.is_some();
            match tokio::time::timeout(LOOK, self.turn()).await {
                Ok(Ok(())) => self.complaints.works(WHAT),
                Ok(Err(error)) => {
                    let reason = ApiFault::new(WHAT, NEEDS, &error).to_string();
                    self.complaints.fails(WHAT, &reason);
                }
                Err(_elapsed) => self.complaints.fails(WHAT, "the API server does not answer"),
            }
            let holds = self.renewed.is_some_and(|at| at.elapsed() < DEADLINE);
            if !holds {
                self.renewed = None;
            }
            if is_leading != holds || *self.lead.borrow() != holds {
                tracing::info!(lease = self.name, leads = holds, "election");
                self.lead.send_replace(holds);
            }
            let is_fresh = self.renewed.is_some_and(|at| at.elapsed() < LOOK);
            let pause = if is_fresh { RENEWAL } else { LOOK };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = &mut stopped => break,
            }
        }
        self.lead.send_replace(false);
        if self.renewed.is_some() {
            drop(tokio::time::timeout(LOOK, self.release()).await);
        }
    }

    /// Renews the Lease, or takes it when it is free.
    async fn turn(&mut self) -> Result<(), kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let mut lease = Lease::default();
            lease.metadata.name = Some(self.name.clone());
            return self.write(lease, true).await;
        };
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder == self.identity {
            return self.write(lease, false).await;
        }
        // Another replica holds the Lease now, so our renewal no longer counts.
        self.renewed = None;
        let version = lease.metadata.resource_version.clone();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((version, now));
                now
            }
        };
        let seconds = spec.and_then(|spec| spec.lease_duration_seconds).unwrap_or_default();
        let duration =
            Duration::from_secs(u64::try_from(seconds).unwrap_or_default()).max(DURATION);
        if holder.is_empty() || since.elapsed() > duration {
            return self.write(lease, true).await;
        }
        Ok(())
    }

    async fn write(&mut self, mut lease: Lease, is_new: bool) -> Result<(), kube::Error> {
        // Our time counts from before the write, the others' from after it.
        let at = Instant::now();
        let exists = lease.metadata.resource_version.is_some();
        let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
        let now = MicroTime(Timestamp::now());
        if is_new {
            spec.holder_identity = Some(self.identity.clone());
            spec.acquire_time = Some(now.clone());
            let transitions = spec.lease_transitions.unwrap_or_default();
            spec.lease_transitions = Some(if exists { transitions.saturating_add(1) } else { 0 });
        }
        spec.renew_time = Some(now);
        spec.lease_duration_seconds = i32::try_from(DURATION.as_secs()).ok();
        let params = PostParams::default();
        let written = if exists {
            self.api.replace(&self.name, &params, &lease).await
        } else {
            self.api.create(&params, &lease).await
        };
        match written {
            Ok(_) => {
                self.renewed = Some(at);
                Ok(())
            }
            // Another replica was faster; the next turn sees which.
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn release(&self) {
        let Ok(Some(mut lease)) = self.api.get_opt(&self.name).await else { return };
        let Some(spec) = &mut lease.spec else { return };
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return;
        }
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        if let Err(error) = self.api.replace(&self.name, &PostParams::default(), &lease).await {
            tracing::debug!(%error, "the lease ends by itself");
        }
    }
}
