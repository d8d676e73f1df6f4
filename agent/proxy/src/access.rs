//! One log line per connection, with the field names that ztunnel's users know.

use sluice_mesh::Snapshot;
use tracing::Level;

use crate::{
    live::{Direction, Live},
    series::Ending,
};

/// Writes the line of a connection that has ended. `error` is the reason if it did not end by itself.
pub(crate) fn connection_complete(snapshot: &Snapshot, live: &Live, error: Option<&dyn Ending>) {
    if let Some(error) = error {
        live.end_as(error.flags());
    }
    let facts = &live.facts;
    let source = snapshot.workload_of(facts.source.ip(), facts.source_identity.as_ref());
    let destination =
        snapshot.workload_of(facts.destination.ip(), facts.destination_identity.as_ref());
    let service = snapshot
        .service_at(facts.requested)
        .map(|service| format!("{}/{}", service.namespace, service.name));
    let direction = match facts.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    };
    macro_rules! line {
        ($level:expr) => {
            tracing::event!(
                target: "access",
                $level,
                src.addr = %facts.source,
                src.workload = source.map(|workload| workload.name.as_str()),
                src.namespace = source.map(|workload| workload.account.namespace.as_str()),
                src.identity = facts.source_identity.as_ref().map(tracing::field::display),
                dst.addr = %facts.destination,
                dst.service = service,
                dst.workload = destination.map(|workload| workload.name.as_str()),
                dst.namespace = destination.map(|workload| workload.account.namespace.as_str()),
                dst.identity = facts.destination_identity.as_ref().map(tracing::field::display),
                direction,
                transport = ?live.transport(),
                bytes_sent = live.sent(),
                bytes_recv = live.received(),
                duration = ?live.opened.elapsed(),
                error = error.map(tracing::field::display),
                "connection complete"
            )
        };
    }
    if error.is_none() { line!(Level::INFO) } else { line!(Level::ERROR) }
}
