//! Compares what really happened with what the agents' access logs say of it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, ensure};
use sluice_tests::NodeName;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    callers::Call,
    houses::{Tenant, lock},
};

/// The tolerance for times in the log, which are cut off at microseconds.
const ROUNDING: Duration = Duration::from_millis(1);
/// How late after a connection's end its line may be written; the connection then seems to have begun as late.
const WRITTEN_LATE: Duration = Duration::from_secs(1);

/// A line of an access log.
#[derive(Debug)]
struct Line(String);

/// The lines of one agent, by direction and client's address.
type Lines = HashMap<(String, SocketAddr), Vec<Line>>;

/// Sums over all calls.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// Calls that were delivered over mutual TLS or within one agent, with their identities checked at both ends.
    pub(crate) proved: usize,
    /// Those of `proved` that stayed within one agent.
    pub(crate) local: usize,
    /// Those of `proved` whose client the server's agent took for another or did not know.
    pub(crate) server_misled: usize,
    /// Calls that were delivered in plaintext to pods outside the mesh.
    pub(crate) plaintext: usize,
    /// Refused calls whose client's agent believed in another identity than that of the pod that was there.
    pub(crate) client_misled: usize,
    /// Those of `client_misled` that the certificate exposed.
    pub(crate) unmasked: usize,
    /// Handshakes that reached a pod outside the mesh, because a client's agent took its address for that of a pod of
    /// the mesh.
    pub(crate) handshakes: usize,
    /// Calls that were refused by policy, the client's agent knowing the server's identity.
    pub(crate) forbidden: usize,
    /// Calls that were refused because the client is outside the mesh and the server within.
    pub(crate) strangers: usize,
    /// Calls that were refused although policy would have allowed them: the price of not knowing.
    pub(crate) needless: usize,
    /// Everything that must not happen and did.
    pub(crate) wrongs: Vec<String>,
}

// === impl Line ===

impl Line {
    /// Returns a field's text without quotation marks. `error` is the last field and contains all that follows.
    fn field(&self, name: &str) -> Option<&str> {
        let (_, rest) = self.0.split_once(&format!(" {name}="))?;
        let end = if name == "error" { None } else { rest.find(' ') };
        Some(end.map_or(rest, |end| rest.split_at(end).0).trim_matches('"'))
    }

    /// Returns whether any byte went either way.
    fn carried(&self) -> bool {
        ["bytes_sent", "bytes_recv"].into_iter().any(|name| self.field(name) != Some("0"))
    }

    /// Returns when the connection began. The line is written when it ends, and says how long it lasted.
    fn begun(&self) -> Option<SystemTime> {
        let (written, _) = self.0.split_once(' ')?;
        let written = OffsetDateTime::parse(written, &Rfc3339).ok()?;
        Some(SystemTime::from(written) - duration(self.field("duration")?)?)
    }
}

fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let seconds: f64 = digits.parse().ok()?;
    let unit = match text.get(digits.len()..)? {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        "ns" => 1e-9,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds * unit).ok()
}

fn read(log: &str) -> Result<Lines> {
    let mut lines = Lines::new();
    for text in log.lines().filter(|line| line.contains("connection complete")) {
        let line = Line(text.to_owned());
        let direction = line.field("direction").context("no direction")?.to_owned();
        let source = line.field("src.addr").context("no source")?.parse()?;
        lines.entry((direction, source)).or_default().push(line);
    }
    Ok(lines)
}

/// Returns the lines of all connections from the port of this call.
fn ports_lines<'a>(
    lines: &'a BTreeMap<NodeName, Lines>,
    at: &Tenant,
    direction: &str,
    call: &Call,
) -> &'a [Line] {
    call.source
        .and_then(|source| lines.get(&at.pod.node)?.get(&(direction.to_owned(), source)))
        .map_or(&[], Vec::as_slice)
}

/// Returns the lines that may be of this call at one of its ends: between the same addresses, and begun during it or up
/// to `late` after it. There may be several, because the port of a refused connection may be used again at once.
fn candidates<'a>(
    lines: &'a BTreeMap<NodeName, Lines>,
    at: &Tenant,
    direction: &str,
    call: &Call,
    late: Duration,
) -> impl Iterator<Item = &'a Line> {
    let theirs = ports_lines(lines, at, direction, call);
    let target = call.target.to_string();
    let span = call.begun - ROUNDING..=call.ended + late;
    theirs.iter().filter(move |line| {
        line.field("dst.addr") == Some(&target)
            && line.begun().is_some_and(|begun| span.contains(&begun))
    })
}

/// Returns the line of a connection that delivered what its client said, which takes at least a byte.
fn of_delivery<'a>(
    lines: &'a BTreeMap<NodeName, Lines>,
    at: &Tenant,
    direction: &str,
    call: &Call,
    late: Duration,
) -> Option<&'a Line> {
    candidates(lines, at, direction, call, late).find(|line| line.carried())
}

/// Does the same as [`of_delivery`] for a connection that must have a line: if none seems to have begun in time, a
/// later one is taken.
fn of_mesh_delivery<'a>(
    lines: &'a BTreeMap<NodeName, Lines>,
    at: &Tenant,
    direction: &str,
    call: &Call,
) -> Option<&'a Line> {
    let with = |late| of_delivery(lines, at, direction, call, late);
    with(ROUNDING).or_else(|| with(WRITTEN_LATE))
}

// === impl Verdict ===

impl Verdict {
    /// Judges every call by what its server was told, and by the logs of both agents.
    pub(crate) fn of(
        calls: &[Call],
        everybody: &BTreeMap<String, Arc<Tenant>>,
        logs: &BTreeMap<NodeName, String>,
    ) -> Result<Self> {
        let mut lines = BTreeMap::new();
        for (node, log) in logs {
            lines.insert(*node, read(log)?);
        }
        let said: HashSet<&str> = calls.iter().map(|call| call.line.as_str()).collect();
        let mut verdict = Self::default();
        let mut delivered: HashMap<String, Arc<Tenant>> = HashMap::new();
        for tenant in everybody.values() {
            for line in lock(&tenant.guests).iter() {
                if !said.contains(line.as_str()) {
                    // No client said this: it is an agent's handshake, which no application of the mesh may hear.
                    verdict.handshakes += 1;
                    if tenant.in_mesh() {
                        verdict.wrongs.push(format!("{} heard {line:?}", tenant.name));
                    }
                    continue;
                }
                ensure!(
                    delivered.insert(line.clone(), Arc::clone(tenant)).is_none(),
                    "{line:?} was heard twice"
                );
            }
        }
        for call in calls {
            let server = delivered.get(&call.line);
            if let Some(answer) = &call.answer
                && server.is_none_or(|server| server.name != *answer)
            {
                verdict.wrongs.push(format!("{}: {answer} never heard it", call.line));
            }
            match server {
                Some(server) => verdict.judge_delivery(call, server, &lines),
                None => verdict.judge_refusal(call, &lines),
            }
        }
        Ok(verdict)
    }

    fn judge_delivery(&mut self, call: &Call, server: &Tenant, lines: &BTreeMap<NodeName, Lines>) {
        let client = &call.client;
        let outbound = if server.in_mesh() {
            of_mesh_delivery(lines, client, "outbound", call)
        } else {
            of_delivery(lines, client, "outbound", call, ROUNDING)
        };
        let what = format!(
            "{} ({}) to {} ({}) at {}",
            call.line, client.account, server.name, server.account, call.target
        );
        if !client.may_reach(server) {
            self.wrongs.push(format!("{what} was forbidden: {outbound:?}"));
        }
        if !server.in_mesh() {
            self.plaintext += 1;
            if outbound.is_some_and(|line| line.field("dst.identity").is_some()) {
                self.wrongs.push(format!("{what} was meant for the mesh: {outbound:?}"));
            }
            return;
        }
        let inbound = of_mesh_delivery(lines, server, "inbound", call);
        let (own, other) = (client.identity(), server.identity());
        let right = |line: &Line| {
            line.field("src.identity") == Some(&own) && line.field("dst.identity") == Some(&other)
        };
        let (Some(out), Some(inn)) = (outbound, inbound) else {
            let others = [(client.as_ref(), "outbound"), (server, "inbound")]
                .map(|(end, direction)| ports_lines(lines, end, direction, call));
            self.wrongs.push(format!(
                "{what} is in no log: {outbound:?} {inbound:?}, from {:?} to {:?}; from its port: {others:?}",
                OffsetDateTime::from(call.begun),
                OffsetDateTime::from(call.ended)
            ));
            return;
        };
        if !right(out) || !right(inn) {
            self.wrongs.push(format!("{what} has a wrong identity: {out:?} {inn:?}"));
        }
        self.proved += 1;
        self.local += usize::from(inn.field("transport") == Some("Local"));
        let known = inn.field("src.workload");
        self.server_misled += usize::from(known != Some(&client.name));
        // An earlier pod may be named, but nothing that never was a pod.
        if known.is_some_and(|known| !known.starts_with('p')) {
            self.wrongs.push(format!("{what} names a workload that never was: {inn:?}"));
        }
    }

    fn judge_refusal(&mut self, call: &Call, lines: &BTreeMap<NodeName, Lines>) {
        let Some(there) = &call.there else { return };
        let client = &call.client;
        if !client.in_mesh() {
            self.strangers += usize::from(there.in_mesh());
            return;
        }
        let Some(line) = candidates(lines, client, "outbound", call, ROUNDING).next() else {
            return;
        };
        let Some(believed) = line.field("dst.identity") else { return };
        if !there.in_mesh() || believed != there.identity() {
            self.client_misled += 1;
            let told = "which is not the workload that was dialled";
            self.unmasked += usize::from(line.field("error").is_some_and(|e| e.contains(told)));
        } else if client.may_reach(there) {
            self.needless += 1;
        } else {
            self.forbidden += 1;
        }
    }
}
