//! Sums over connections, by who talks with whom: the numbers behind Istio's TCP metrics.
//!
//! A connection finds its series when it is listed and adds to it when it ends: nothing is counted per chunk. The
//! bytes of open connections are added when somebody asks. The number of series is bounded; connections beyond the
//! bound add to series whose ends and service are all `other`.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sluice_mesh::{Snapshot, Workload, WorkloadUid};
use sluice_spiffe::SpiffeId;
use sluice_wire::ResetReason;

use crate::{
    live::{Direction, Facts, Live, Transport},
    session::Broken,
};

/// Most series of the agent, about 2 KiB each. A node has about a hundred pods, each with about a dozen peers.
const MAX_SERIES: usize = 4096;
/// How long a series is kept after its last connection.
const MAX_IDLE_TIME: Duration = Duration::from_mins(15);
/// Stands for the values of connections beyond [`MAX_SERIES`].
const OTHER: &str = "other";
/// Stands for a value that is not known, as in Istio's metrics.
const UNKNOWN: &str = "unknown";

/// How a connection ended, in the words of Istio's `response_flags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flags {
    /// By itself.
    #[default]
    None,
    /// Policy refused it, or ended it.
    Deny,
    /// The other side could not be reached.
    Connect,
    /// TLS or the protocol inside it failed.
    TlsFailure,
    /// There was no certificate to show.
    IdentityError,
    /// An end's certificate is not accepted any more.
    CertRevoked,
}

/// A reason why a connection ended before its time.
pub(crate) trait Ending: fmt::Display {
    /// Returns how the connection ended, in Istio's words.
    fn flags(&self) -> Flags;
}

/// One end of a series.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct End {
    /// The workload: a pod's name without the suffix that its controller added.
    pub workload: String,
    /// Its namespace.
    pub namespace: String,
    /// Its identity, if a certificate or enrolment tells it.
    pub principal: String,
    /// The label `app`.
    pub app: String,
    /// The label `version`.
    pub version: String,
    /// Istio's canonical service.
    pub canonical_service: String,
    /// Istio's canonical revision.
    pub canonical_revision: String,
}

/// What the connections of a series have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Whether the client's or the server's side reports it.
    pub reporter: Direction,
    /// How it was protected.
    pub transport: Transport,
    /// The client.
    pub source: End,
    /// The server.
    pub destination: End,
    /// Namespace and name of the service that was asked for.
    pub service: Option<(String, String)>,
}

/// The sums of one series.
#[derive(Debug)]
pub struct Series {
    /// What its connections have in common.
    pub labels: Labels,
    opened: AtomicU64,
    ended: [Ended; Flags::ALL.len()],
    used: Mutex<Instant>,
}

#[derive(Debug, Default)]
struct Ended {
    closed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

/// The sums over those connections of one series that ended in the same way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// How these connections ended. Open ones are counted under [`Flags::None`].
    pub flags: Flags,
    /// Connections that were opened; all of them are counted under [`Flags::None`].
    pub opened: u64,
    /// Connections that ended in this way.
    pub closed: u64,
    /// Bytes from client to server.
    pub sent: u64,
    /// Bytes from server to client.
    pub received: u64,
}

/// What tells series apart; cheaper to make than [`Labels`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    reporter: Direction,
    transport: Transport,
    source: Option<WorkloadUid>,
    source_identity: Option<SpiffeId>,
    destination: Option<WorkloadUid>,
    destination_identity: Option<SpiffeId>,
    /// The service's address.
    service: Option<IpAddr>,
}

/// All series: one shard per worker, so that workers do not contend.
#[derive(Debug)]
pub struct SeriesTable {
    shards: Vec<Mutex<HashMap<Key, Arc<Series>>>>,
    /// Series for connections beyond the bound, by direction and transport.
    others: Mutex<HashMap<(Direction, Transport), Arc<Series>>>,
}

// === impl Flags ===

impl Flags {
    /// All flags, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Deny,
        Self::Connect,
        Self::TlsFailure,
        Self::IdentityError,
        Self::CertRevoked,
    ];

    /// Returns the flags for a session that failed.
    pub(crate) fn of_broken(broken: &Broken) -> Self {
        match broken {
            Broken::Tls(_)
            | Broken::Peer(_)
            | Broken::Protocol(_)
            | Broken::NoStream
            | Broken::UnexpectedOpen
            | Broken::FrameLength(_) => Self::TlsFailure,
            Broken::Closed
            | Broken::HandshakeTimeout(_)
            | Broken::Truncated
            | Broken::Socket(_) => Self::Connect,
        }
    }

    /// Returns the flags for a stream that either agent ended.
    pub(crate) fn of_reset(reason: ResetReason) -> Self {
        match reason {
            ResetReason::Denied | ResetReason::PolicyChanged => Self::Deny,
            ResetReason::Revoked => Self::CertRevoked,
            ResetReason::Protocol => Self::TlsFailure,
            ResetReason::Application | ResetReason::Draining => Self::None,
            ResetReason::Unreachable | ResetReason::Overloaded | ResetReason::Unknown => {
                Self::Connect
            }
        }
    }

    /// Returns the text that Istio writes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}

// === impl Series ===

impl Series {
    fn new(labels: Labels) -> Self {
        let (opened, ended) = (AtomicU64::new(0), std::array::from_fn(|_| Ended::default()));
        Self { labels, opened, ended, used: Mutex::new(Instant::now()) }
    }

    /// Returns the sums for each way of ending that has any, and always those for [`Flags::None`].
    pub fn sums(&self) -> impl Iterator<Item = Sums> {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Flags::ALL.into_iter().zip(&self.ended).filter_map(move |(flags, ended)| {
            let opened = if flags == Flags::None { read(&self.opened) } else { 0 };
            let (closed, sent) = (read(&ended.closed), read(&ended.sent));
            let sums = Sums { flags, opened, closed, sent, received: read(&ended.received) };
            (flags == Flags::None || closed > 0).then_some(sums)
        })
    }

    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// Adds what `live` has carried since the last call.
    fn carried(&self, live: &Live, flags: Flags) {
        if let Some(ended) = self.ended.get(flags as usize) {
            let (sent, received) = live.take_unreported();
            ended.sent.fetch_add(sent, Ordering::Relaxed);
            ended.received.fetch_add(received, Ordering::Relaxed);
        }
    }

    pub(crate) fn closed(&self, live: &Live) {
        let flags = live.flags();
        self.carried(live, flags);
        if let Some(ended) = self.ended.get(flags as usize) {
            ended.closed.fetch_add(1, Ordering::Relaxed);
        }
        self.touch();
    }

    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn is_idle(&self, now: Instant) -> bool {
        let used = *self.used.lock().unwrap_or_else(PoisonError::into_inner);
        now.saturating_duration_since(used) > MAX_IDLE_TIME
    }
}

// === impl SeriesTable ===

impl SeriesTable {
    /// A table for this many workers.
    pub fn new(workers: usize) -> Self {
        let shards = (0..workers.max(1)).map(|_| Mutex::default()).collect();
        Self { shards, others: Mutex::default() }
    }

    /// Returns the series of a connection of the given worker.
    pub(crate) fn of(&self, worker: usize, snapshot: &Snapshot, facts: &Facts) -> Arc<Series> {
        let source = snapshot.workload_of(facts.source.ip(), facts.source_identity.as_ref());
        let destination =
            snapshot.workload_of(facts.destination.ip(), facts.destination_identity.as_ref());
        let service = snapshot.service_at(facts.requested);
        let key = Key {
            reporter: facts.direction,
            transport: facts.transport,
            source: source.map(|workload| workload.uid.clone()),
            source_identity: facts.source_identity.clone(),
            destination: destination.map(|workload| workload.uid.clone()),
            destination_identity: facts.destination_identity.clone(),
            // Services may share the address that was asked for.
            service: service.map(|service| {
                service.addresses.first().copied().unwrap_or_else(|| facts.requested.ip())
            }),
        };
        let Some(shard) = self.shards.get(worker) else { return self.other(facts) };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = shard.get(&key) {
            return Arc::clone(series);
        }
        if shard.len() >= MAX_SERIES / self.shards.len() {
            return self.other(facts);
        }
        let series = Arc::new(Series::new(Labels {
            reporter: facts.direction,
            transport: facts.transport,
            source: End::of(source, facts.source_identity.as_ref()),
            destination: End::of(destination, facts.destination_identity.as_ref()),
            service: service.map(|service| (service.namespace.clone(), service.name.clone())),
        }));
        shard.insert(key, Arc::clone(&series));
        series
    }

    fn other(&self, facts: &Facts) -> Arc<Series> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let series = others.entry((facts.direction, facts.transport)).or_insert_with(|| {
            Arc::new(Series::new(Labels {
                reporter: facts.direction,
                transport: facts.transport,
                source: End::every(OTHER),
                destination: End::every(OTHER),
                service: Some((OTHER.to_owned(), OTHER.to_owned())),
            }))
        });
        Arc::clone(series)
    }

    /// Adds what the `live` connections have carried by now and returns every series. Series with equal labels are
    /// not merged. Forgets those that nobody has used for a while.
    pub fn all(&self, live: &[Arc<Live>]) -> Vec<Arc<Series>> {
        for live in live {
            if let Some(series) = live.series() {
                series.carried(live, Flags::None);
            }
        }
        let now = Instant::now();
        let mut all = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            // An open connection holds a reference to its series.
            shard.retain(|_, series| Arc::strong_count(series) > 1 || !series.is_idle(now));
            all.extend(shard.values().cloned());
        }
        all.extend(self.others.lock().unwrap_or_else(PoisonError::into_inner).values().cloned());
        all
    }
}

// === impl End ===

impl End {
    fn of(workload: Option<&Workload>, identity: Option<&SpiffeId>) -> Self {
        let principal = identity.map_or(UNKNOWN, SpiffeId::as_str).to_owned();
        let Some(workload) = workload else { return Self { principal, ..Self::every(UNKNOWN) } };
        let label =
            |names: &[&str]| names.iter().find_map(|name| workload.labels.get(*name)).cloned();
        let name = template_name(workload);
        let canonical = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];
        let revision =
            ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
        Self {
            namespace: workload.account.namespace.clone(),
            principal,
            app: label(&["app"]).unwrap_or_else(|| UNKNOWN.to_owned()),
            version: label(&["version"]).unwrap_or_else(|| UNKNOWN.to_owned()),
            canonical_service: label(&canonical).unwrap_or_else(|| name.clone()),
            canonical_revision: label(&revision).unwrap_or_else(|| "latest".to_owned()),
            workload: name,
        }
    }

    fn every(value: &str) -> Self {
        let value = || value.to_owned();
        Self {
            workload: value(),
            namespace: value(),
            principal: value(),
            app: value(),
            version: value(),
            canonical_service: value(),
            canonical_revision: value(),
        }
    }
}

/// Returns a pod's name without the suffix that its controller added: the name of the Deployment, `DaemonSet` or
/// `StatefulSet`.
fn template_name(workload: &Workload) -> String {
    let name = workload.name.as_str();
    let parent = if let Some(hash) = workload.labels.get("pod-template-hash") {
        name.rsplit_once('-')
            .and_then(|(rest, _)| rest.strip_suffix(hash.as_str())?.strip_suffix('-'))
    } else if ["controller-revision-hash", "statefulset.kubernetes.io/pod-name"]
        .iter()
        .any(|label| workload.labels.contains_key(*label))
    {
        name.rsplit_once('-').map(|(rest, _)| rest)
    } else {
        None
    };
    parent.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests;
