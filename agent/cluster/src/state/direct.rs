//! Destinations that `DestinationRule`s take out of the mesh.

use std::{
    collections::{BTreeMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use sluice_mesh::{Endpoints, Service};

use crate::{
    Finding, Meaning, ObjectName, Settings,
    facts::{Name, Reach, RuleFacts},
};

/// Returns the addresses of services and of their endpoints, on the ports that every rule about the service wants
/// reached directly. Only rules of the service's own namespace or the root namespace count: a client must not decide
/// for the others on its node.
pub(crate) fn destinations(
    rules: &BTreeMap<Name, RuleFacts>,
    services: &[Arc<Service>],
    settings: &Settings,
    findings: &mut Vec<Finding>,
) -> HashSet<SocketAddr> {
    let mut about: BTreeMap<(&str, &str), Vec<&RuleFacts>> = BTreeMap::new();
    for rule in rules.values() {
        let complaints = rule.complaints.iter();
        findings.extend(
            complaints.map(|complaint| remark(rule, &complaint.field, complaint.meaning.clone())),
        );
        match &rule.service {
            Some(service) if may_decide(rule, service, settings) => {
                about.entry((&*service.namespace, &*service.name)).or_default().push(rule);
            }
            Some(_) if !wants_direct(rule) => {}
            Some(_) => {
                let meaning = Meaning::ForeignRule(settings.root_namespace.clone());
                findings.push(remark(rule, "metadata.namespace", meaning));
            }
            None if wants_direct(rule) => findings.push(unknown_host(rule)),
            None => {}
        }
    }
    let mut direct = HashSet::new();
    if about.is_empty() {
        return direct;
    }
    for service in services {
        if let Some(rules) = about.remove(&(&*service.namespace, &*service.name)) {
            add(service, &rules, &mut direct, findings);
        }
    }
    let without_service = about.into_values().flatten().filter(|rule| wants_direct(rule));
    findings.extend(without_service.map(unknown_host));
    direct
}

fn may_decide(rule: &RuleFacts, service: &Name, settings: &Settings) -> bool {
    rule.name.namespace == service.namespace || *rule.name.namespace == *settings.root_namespace
}

fn wants_direct(rule: &RuleFacts) -> bool {
    rule.default == Reach::Direct || rule.ports.values().any(|reach| *reach == Reach::Direct)
}

fn add(
    service: &Service,
    rules: &[&RuleFacts],
    direct: &mut HashSet<SocketAddr>,
    findings: &mut Vec<Finding>,
) {
    for port in service.ports.iter().map(|port| port.port) {
        let wanting = rules.iter().filter(|rule| rule.reach(port) == Reach::Direct).count();
        let what = || format!("{}/{} port {port}", service.namespace, service.name);
        let meaning = match wanting {
            0 => continue,
            all if all == rules.len() => Meaning::ReachedDirectly(what()),
            _ => Meaning::RulesDisagree(what()),
        };
        let is_direct = matches!(meaning, Meaning::ReachedDirectly(_));
        let remarks = rules.iter().map(|rule| remark(rule, "spec.trafficPolicy", meaning.clone()));
        findings.extend(remarks);
        if !is_direct {
            continue;
        }
        direct.extend(service.reached_at(port));
        if let Endpoints::Listed(endpoints) = &service.endpoints {
            direct.extend(endpoints.iter().filter_map(|endpoint| {
                Some(SocketAddr::new(endpoint.address, endpoint.target_port(port)?))
            }));
        }
    }
}

fn unknown_host(rule: &RuleFacts) -> Finding {
    remark(rule, "spec.host", Meaning::UnknownHost(rule.host.to_string()))
}

fn remark(rule: &RuleFacts, field: &str, meaning: Meaning) -> Finding {
    let Name { namespace, name } = rule.name.clone();
    Finding::new(ObjectName { kind: "DestinationRule", namespace, name }, field, meaning)
}
