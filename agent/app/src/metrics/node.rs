//! The agent's own metrics: certificates, capture, the kernel's counters, the state of the mesh.

use prometheus_client::{
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::Exporter;
use crate::view::model::{Capture, Counters, Pod, PolicyState, Status};

type Encoded = Result<(), std::fmt::Error>;
type Pairs = Vec<(&'static str, String)>;

pub(super) fn encode_node(encoder: &mut DescriptorEncoder<'_>, exporter: &Exporter) -> Encoded {
    let status = exporter.answers.status();
    encode_certificates(encoder, exporter)?;
    encode_state(encoder, &status)?;
    encode_pods(encoder, &status.pods)
}

fn encode_certificates(encoder: &mut DescriptorEncoder<'_>, exporter: &Exporter) -> Encoded {
    let certificates = &exporter.shared.certificates;
    let status = certificates.status();
    let expiry = status.iter().filter_map(|status| {
        let svid = status.certificate.as_ref()?;
        Some((vec![("identity", status.identity.to_string())], seconds(svid.not_after.as_secs())))
    });
    let help = "When the certificate expires, in seconds since 1970";
    gauges(encoder, "identity_cert_expiration_timestamp_seconds", help, expiry.collect())?;
    let failing = status.iter().filter(|status| status.last_error.is_some()).count();
    let help = "Local identities by the outcome of their last certificate request";
    let outcomes = [("failed", failing), ("well", status.len() - failing)];
    let outcomes =
        outcomes.map(|(outcome, count)| (vec![("outcome", outcome.to_owned())], number(count)));
    gauges(encoder, "sluice_identities", help, outcomes.into())?;
    let trust = certificates.roots();
    let roots = trust.authorities().into_iter().map(|root| {
        let labels = vec![("subject", root.subject), ("serial", root.serial)];
        (labels, seconds(root.not_after.as_secs()))
    });
    let help = "When a root expires, in seconds since 1970";
    gauges(encoder, "sluice_root_expiration_timestamp_seconds", help, roots.collect())?;
    let lists = trust.revocations().crls().map(|list| {
        (vec![("issuer", list.issuer().to_owned())], seconds(list.next_update().as_secs()))
    });
    let help = "When the next revocation list is due, in seconds since 1970";
    gauges(encoder, "sluice_crl_next_update_timestamp_seconds", help, lists.collect())?;
    let certs = exporter.answers.certs();
    let help = "Entries in the list of denied identities";
    gauges(encoder, "sluice_denied_identities", help, vec![(vec![], number(certs.denied))])?;
    let help = "Trust files that are not in force as they are, and things about to expire";
    let troubles = [("fault", certs.faults.len()), ("warning", certs.warnings.len())];
    let troubles = troubles.map(|(kind, count)| (vec![("kind", kind.to_owned())], number(count)));
    gauges(encoder, "sluice_trust_troubles", help, troubles.into())
}

fn encode_state(encoder: &mut DescriptorEncoder<'_>, status: &Status) -> Encoded {
    let one = |count| vec![(vec![], count)];
    let build = vec![(vec![("version", status.version.clone())], 1)];
    gauges(encoder, "sluice_build", "The agent's version", build)?;
    let open = number(status.open_connections);
    gauges(encoder, "sluice_open_connections", "Connections open now", one(open))?;
    let source = &status.source;
    let version = seconds(source.version);
    gauges(encoder, "sluice_mesh_state_version", "States of the mesh taken over", one(version))?;
    let age = source.age_seconds.map(|age| (vec![], seconds(age))).into_iter().collect();
    gauges(encoder, "sluice_mesh_state_age_seconds", "Since the last change of the mesh", age)?;
    let errors = number(source.errors.len());
    gauges(encoder, "sluice_mesh_state_errors", "Faults in the source of state", one(errors))?;
    let outcomes = [PolicyState::Accepted, PolicyState::Narrowed, PolicyState::Refused];
    let policies = outcomes.map(|state| {
        let count = status.policies.iter().filter(|policy| policy.state == state).count();
        (vec![("state", state.to_string())], number(count))
    });
    let help = "Policies by what became of their newest version";
    gauges(encoder, "sluice_policies", help, policies.into())?;
    let peers = &status.peers;
    let peers = [("known", peers.known), ("capacity", peers.capacity)]
        .map(|(kind, count)| (vec![("kind", kind.to_owned())], number(count)));
    gauges(encoder, "sluice_protected_addresses", "The kernel's table of peers", peers.into())?;
    let overflowed = i64::from(status.peers.capture_all);
    let help = "Whether every destination is captured because the table of peers overflowed";
    gauges(encoder, "sluice_protected_addresses_overflowed", help, one(overflowed))?;
    let dropped = status.unattributed.map(|counts| {
        [("inbound_dropped", counts.inbound_dropped), ("guard_drops", counts.guard_drops)]
            .map(|(event, count)| (vec![("event", event.to_owned())], seconds(count)))
    });
    let help = "Kernel's counts of what it dropped in namespaces of pods, but for no pod that it knows; \
                inbound_dropped: requests to connect to an address that no pod has in the mesh; guard_drops: packets \
                from an unknown interface";
    gauges(encoder, "sluice_kernel_unattributed", help, dropped.into_iter().flatten().collect())
}

/// Name, help text, and which of a pod's counters it sums up.
type Column = (&'static str, &'static str, fn(&Counters) -> u64);

const KERNEL: [Column; 10] = [
    ("captured", "outbound connections handed to the agent", |c| c.captured),
    ("direct", "outbound connections to destinations outside the mesh", |c| c.direct),
    ("denied", "outbound connections refused", |c| c.denied),
    ("inbound", "inbound connections handed to the agent", |c| c.inbound),
    ("inbound_dropped", "inbound connections refused for want of an agent", |c| c.inbound_dropped),
    ("guard_drops", "packets that tried to pass the agent by", |c| c.guard_drops),
    ("udp", "UDP packets to pods of the mesh", |c| c.udp),
    ("bypassed", "connections that a pod's owner keeps out of the mesh", |c| c.bypassed),
    ("probes", "connections of the kubelet to ports declared for probes", |c| c.probes),
    ("errors", "failures in the hooks, each of which refused", |c| c.errors),
];

fn encode_pods(encoder: &mut DescriptorEncoder<'_>, pods: &[Pod]) -> Encoded {
    let states = Capture::ALL.map(|state| {
        let count = pods.iter().filter(|pod| pod.state == state).count();
        (vec![("state", state.to_string())], number(count))
    });
    let help =
        "Pods of this node that belong to the mesh, by what the kernel says of their capture";
    gauges(encoder, "sluice_pods", help, states.into())?;
    // Gauges, because these sums may fall: pods that have gone are not in them.
    let sum =
        |column: fn(&Counters) -> u64| pods.iter().map(|pod| column(&pod.counters)).sum::<u64>();
    let events =
        KERNEL.map(|(event, _, column)| (vec![("event", event.to_owned())], seconds(sum(column))));
    let meanings = KERNEL.map(|(event, meaning, _)| format!("{event}: {meaning}"));
    let help =
        format!("Kernel's counts of the pods that are enrolled now; {}", meanings.join("; "));
    gauges(encoder, "sluice_kernel_events", &help, events.into())?;
    let refused = sum(|c| c.outbound_refused) + sum(|c| c.inbound_refused);
    let help = "Connections that the agent refused, of the pods that are enrolled now";
    gauges(encoder, "sluice_refused_connections", help, vec![(vec![], seconds(refused))])
}

pub(super) fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: Vec<(Pairs, i64)>,
) -> Encoded {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (pairs, value) in rows {
        let gauge = ConstGauge::new(value);
        if pairs.is_empty() {
            // The only row of its family: without labels there can be no other.
            return gauge.encode(family);
        }
        gauge.encode(family.encode_family(&pairs)?)?;
    }
    Ok(())
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn seconds(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
