//! Gathers the answers to the operator's questions from the parts of the agent.

use std::{
    sync::{Arc, PoisonError},
    time::Instant,
};

use sluice_identity::Trust;
use sluice_kernel::{PodCounters, Settings};
use sluice_pods::{PodState, PodStatus};
use sluice_proxy::{Direction, Live, PodStats, Transport};
use sluice_source::AgentConfig;
use sluice_tls::{AuthorityStatus, CertStatus, Crl, UnixTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{control::Parts, expiry, facts, policies, source::StatusHandle};
use crate::view::{
    model::{
        Capture, Certificate, Certs, Counters, Flow, NodeFacts, Peers, Pod, Policy, Source, Status,
        TrustEntry, Unattributed,
    },
    server::Answers,
};

/// Answers the operator's questions.
pub(super) struct Operator {
    node: String,
    instance: String,
    started: Instant,
    settings: Settings,
    parts: Parts,
    source: StatusHandle,
    trust: Arc<Trust>,
}

// === impl Operator ===

impl Operator {
    pub(super) fn new(
        config: &AgentConfig,
        settings: Settings,
        parts: Parts,
        source: StatusHandle,
        trust: Arc<Trust>,
    ) -> Self {
        Self {
            node: config.node.clone(),
            instance: config.instance.clone(),
            started: Instant::now(),
            settings,
            parts,
            source,
            trust,
        }
    }

    fn pod(&self, status: PodStatus) -> Pod {
        let (state, reason) = match status.state {
            PodState::Captured => (Capture::Captured, None),
            PodState::Impaired { reason } => (Capture::Impaired, Some(reason)),
            PodState::Refused { reason } => (Capture::Refused, Some(reason)),
            _ => (Capture::Unknown, None),
        };
        let agent = self.parts.shared.stats.get(&status.uid).unwrap_or_default();
        Pod {
            namespace: status.account.namespace.clone(),
            name: status.name,
            identity: status
                .account
                .identity(self.parts.shared.snapshot().trust_domain())
                .map_or_else(|error| error.to_string(), |identity| identity.to_string()),
            addresses: status.addresses.iter().map(ToString::to_string).collect(),
            state,
            reason,
            connections_ended_at_enrolment: status.connections_destroyed,
            ran_before_capture: status.was_running,
            counters: counters(status.counters.unwrap_or_default(), &agent),
        }
    }

    fn unattributed(&self) -> Option<Unattributed> {
        match self.parts.datapath.unattributed() {
            Ok(PodCounters { inbound_dropped, guard_drops, .. }) => {
                Some(Unattributed { inbound_dropped, guard_drops })
            }
            Err(error) => {
                tracing::warn!(%error, "what the kernel dropped for no pod cannot be read");
                None
            }
        }
    }
}

impl Answers for Operator {
    fn status(&self) -> Status {
        let snapshot = self.parts.shared.snapshot();
        let pods = self.parts.pods.lock().unwrap_or_else(PoisonError::into_inner).status();
        let source = self.source.report();
        let policies = policies::of(&snapshot, &source);
        let known = snapshot.protected_addresses().count();
        let capacity = usize::try_from(self.settings.max_peers).unwrap_or(usize::MAX);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            instance: self.instance.clone(),
            trust_domain: snapshot.trust_domain().to_string(),
            uptime_seconds: self.started.elapsed().as_secs(),
            open_connections: self.parts.shared.live.all().len(),
            source: Source {
                version: source.version,
                age_seconds: source.loaded_at.map(|at| at.elapsed().unwrap_or_default().as_secs()),
                errors: source.errors,
                findings: source.findings,
                is_provisional: source.is_provisional,
                is_leaving: snapshot.is_leaving(),
                lag_seconds: source.lag_seconds,
            },
            peers: Peers { known, capacity, capture_all: known > capacity },
            unattributed: self.unattributed(),
            pods: pods.into_iter().map(|pod| self.pod(pod)).collect(),
            certificates: self
                .parts
                .shared
                .certificates
                .status()
                .into_iter()
                .map(certificate)
                .collect(),
            policies,
        }
    }

    fn certs(&self) -> Certs {
        let store = &self.parts.shared.certificates;
        let trust = store.roots();
        let root = |root: AuthorityStatus| TrustEntry {
            kind: "root".to_owned(),
            of: root.subject,
            serial: Some(root.serial),
            not_after: rfc3339(root.not_after),
        };
        let list = |list: &Crl| TrustEntry {
            kind: "crl".to_owned(),
            of: list.issuer().to_owned(),
            serial: None,
            not_after: rfc3339(list.next_update()),
        };
        let lists = trust.revocations().crls().map(list);
        let trust_warnings = expiry::of_trust(store);
        Certs {
            certificates: store.status().into_iter().map(certificate).collect(),
            trust: trust.authorities().into_iter().map(root).chain(lists).collect(),
            denied: trust.revocations().denied().len(),
            warnings: expiry::warnings(store),
            trust_warnings,
            faults: self.trust.faults().borrow().to_vec(),
        }
    }

    fn policies(&self) -> Vec<Policy> {
        policies::of(&self.parts.shared.snapshot(), &self.source.report())
    }

    fn node(&self) -> NodeFacts {
        facts::of(&self.node, &self.settings.cgroup, &self.parts.datapath)
    }

    fn flows(&self) -> Vec<Flow> {
        self.parts.shared.live.all().iter().map(|live| flow(live)).collect()
    }
}

fn counters(kernel: PodCounters, agent: &PodStats) -> Counters {
    Counters {
        captured: kernel.captured,
        direct: kernel.direct,
        denied: kernel.denied,
        inbound: kernel.inbound,
        inbound_dropped: kernel.inbound_dropped,
        guard_drops: kernel.guard_drops,
        udp: kernel.udp,
        errors: kernel.errors,
        bypassed: kernel.bypassed,
        probes: kernel.probes,
        outbound_mtls: agent.outbound_mtls.get(),
        outbound_plaintext: agent.outbound_plaintext.get(),
        outbound_refused: agent.outbound_refused.get(),
        inbound_mtls: agent.inbound_mtls.get(),
        inbound_plaintext: agent.inbound_plaintext.get(),
        inbound_refused: agent.inbound_refused.get(),
    }
}

fn certificate(status: CertStatus) -> Certificate {
    let svid = status.certificate;
    Certificate {
        identity: status.identity.to_string(),
        issuer: svid.as_ref().map(|svid| svid.issuer.clone()),
        serial: svid.as_ref().map(|svid| svid.serial.clone()),
        not_before: svid.as_ref().and_then(|svid| rfc3339(svid.not_before)),
        not_after: svid.as_ref().and_then(|svid| rfc3339(svid.not_after)),
        next_renewal: rfc3339(status.next_renewal),
        last_error: status.last_error,
        is_refused: status.is_refused,
    }
}

fn rfc3339(at: UnixTime) -> Option<String> {
    let seconds = i64::try_from(at.as_secs()).ok()?;
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok()
}

fn flow(live: &Live) -> Flow {
    let facts = &live.facts;
    Flow {
        direction: match facts.direction {
            Direction::Outbound => "outbound",
            Direction::Inbound => "inbound",
        }
        .to_owned(),
        transport: match live.transport() {
            Transport::MutualTls => "mtls",
            Transport::Local => "local",
            Transport::Plaintext => "plaintext",
        }
        .to_owned(),
        pod: facts.pod.to_string(),
        source: facts.source.to_string(),
        source_identity: facts.source_identity.as_ref().map(ToString::to_string),
        requested: facts.requested.to_string(),
        destination: facts.destination.to_string(),
        destination_identity: facts.destination_identity.as_ref().map(ToString::to_string),
        bytes_sent: live.sent(),
        bytes_received: live.received(),
        age_seconds: live.opened.elapsed().as_secs_f64(),
    }
}
