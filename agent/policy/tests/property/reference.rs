//! The naive evaluator: works directly on the JSON of the objects, compiles nothing and shares nothing with the
//! library. Identities are text, addresses are strings of bits, wildcards are tried at every position.

use std::{collections::BTreeSet, net::IpAddr};

use serde_json::Value;

use crate::generate::Attempt;

const HTTP_FIELDS: [&str; 10] = [
    "hosts",
    "notHosts",
    "methods",
    "notMethods",
    "paths",
    "notPaths",
    "requestPrincipals",
    "notRequestPrincipals",
    "remoteIpBlocks",
    "notRemoteIpBlocks",
];

#[derive(Debug, Default)]
pub(crate) struct Answer {
    pub(crate) mode: &'static str,
    pub(crate) denied_by: BTreeSet<String>,
    transport: Option<&'static str>,
    not_allowed: bool,
}

impl Answer {
    pub(crate) fn kind(&self) -> &'static str {
        match (self.transport, self.denied_by.is_empty(), self.not_allowed) {
            (Some(transport), ..) => transport,
            (None, false, _) => "denied by a policy",
            (None, true, true) => "not allowed",
            (None, true, false) => "allowed",
        }
    }
}

pub(crate) fn judge(objects: &[Value], root: &str, attempt: &Attempt) -> Answer {
    let mode = mode(objects, root, attempt);
    let transport = match (mode, &attempt.identity) {
        ("STRICT", None) => Some("plaintext"),
        ("DISABLE", Some(_)) => Some("mutual TLS"),
        _ => None,
    };
    let mut answer = Answer { mode, transport, ..Answer::default() };
    let (mut allow_policies, mut allowed) = (0, false);
    for object in objects.iter().filter(|object| object["kind"] == "AuthorizationPolicy") {
        let home = text(&object["metadata"]["namespace"]);
        let dry = object["metadata"]["annotations"]["istio.io/dry-run"] == "true";
        let bound = (home == root || home == attempt.namespace) && labelled(object, attempt);
        if dry || !bound {
            continue;
        }
        let deny = object["spec"]["action"] == "DENY";
        let matched = list(&object["spec"]["rules"]).iter().any(|rule| {
            if !deny && holds_http(rule) { false } else { rule_matches(rule, home, attempt) }
        });
        if deny && matched {
            answer.denied_by.insert(format!("{home}/{}", text(&object["metadata"]["name"])));
        }
        if !deny {
            allow_policies += 1;
            allowed |= matched;
        }
    }
    answer.not_allowed = allow_policies > 0 && !allowed;
    answer
}

/// Walks the levels from the port to the mesh. Returns the mode of the first that sets one.
fn mode(objects: &[Value], root: &str, attempt: &Attempt) -> &'static str {
    let own = |selecting: bool| {
        oldest(objects, |object| {
            let home = text(&object["metadata"]["namespace"]);
            home == attempt.namespace
                && home != root
                && has_selector(object) == selecting
                && labelled(object, attempt)
        })
    };
    let workload = own(true);
    let namespace = own(false);
    let mesh = oldest(objects, |object| {
        text(&object["metadata"]["namespace"]) == root && !has_selector(object)
    });
    let port =
        workload.map(|object| &object["spec"]["portLevelMtls"][attempt.port.to_string()]["mode"]);
    let levels = [workload, namespace, mesh]
        .map(|level| level.map(|object| &object["spec"]["mtls"]["mode"]));
    for said in [port].into_iter().chain(levels).flatten() {
        match said.as_str() {
            Some("STRICT") => return "STRICT",
            Some("DISABLE") => return "DISABLE",
            Some("PERMISSIVE") => return "PERMISSIVE",
            _ => {}
        }
    }
    "PERMISSIVE"
}

fn oldest(objects: &[Value], wanted: impl Fn(&Value) -> bool) -> Option<&Value> {
    let age = |object: &&Value| {
        let metadata = &object["metadata"];
        let created = metadata["creationTimestamp"].as_str().unwrap_or("9999");
        (created.to_owned(), text(&metadata["name"]).to_owned())
    };
    objects
        .iter()
        .filter(|object| object["kind"] == "PeerAuthentication" && wanted(object))
        .min_by_key(age)
}

fn has_selector(object: &Value) -> bool {
    object["spec"]["selector"]["matchLabels"].as_object().is_some_and(|labels| !labels.is_empty())
}

fn labelled(object: &Value, attempt: &Attempt) -> bool {
    object["spec"]["selector"]["matchLabels"].as_object().is_none_or(|labels| {
        labels.iter().all(|(key, value)| attempt.labels.get(key).is_some_and(|has| *value == **has))
    })
}

fn holds_http(rule: &Value) -> bool {
    let entries = list(&rule["from"])
        .iter()
        .map(|from| &from["source"])
        .chain(list(&rule["to"]).iter().map(|to| &to["operation"]));
    let fields = entries
        .into_iter()
        .any(|entry| HTTP_FIELDS.iter().any(|field| !list(&entry[*field]).is_empty()));
    fields || list(&rule["when"]).iter().any(|when| is_http_key(text(&when["key"])))
}

fn is_http_key(key: &str) -> bool {
    !(key.starts_with("source.") || key.starts_with("destination."))
}

fn rule_matches(rule: &Value, home: &str, attempt: &Attempt) -> bool {
    let from = list(&rule["from"]);
    let to = list(&rule["to"]);
    (from.is_empty() || from.iter().any(|from| source_matches(&from["source"], home, attempt)))
        && (to.is_empty()
            || to.iter().any(|to| {
                both(&to["operation"], "ports", "notPorts", |port| port == attempt.port.to_string())
            }))
        && list(&rule["when"]).iter().all(|when| condition_matches(when, home, attempt))
}

fn source_matches(source: &Value, home: &str, attempt: &Attempt) -> bool {
    both(source, "principals", "notPrincipals", |wanted| {
        is(wanted, attempt, "source.principal", home)
    }) && both(source, "namespaces", "notNamespaces", |wanted| {
        is(wanted, attempt, "source.namespace", home)
    }) && both(source, "serviceAccounts", "notServiceAccounts", |wanted| {
        is(wanted, attempt, "source.serviceAccount", home)
    }) && both(source, "trustDomains", "notTrustDomains", |wanted| {
        is(wanted, attempt, "source.trustDomain", home)
    }) && both(source, "ipBlocks", "notIpBlocks", |wanted| is(wanted, attempt, "source.ip", home))
}

fn condition_matches(when: &Value, home: &str, attempt: &Attempt) -> bool {
    let key = text(&when["key"]);
    is_http_key(key) || both(when, "values", "notValues", |wanted| is(wanted, attempt, key, home))
}

fn both(entry: &Value, yes: &str, no: &str, test: impl Fn(&str) -> bool) -> bool {
    let wanted = list(&entry[yes]);
    let unwanted = list(&entry[no]);
    let one_wanted = wanted.is_empty() || wanted.iter().any(|value| test(text(value)));
    one_wanted && unwanted.iter().all(|value| !test(text(value)))
}

/// Returns whether the attribute that `key` names matches `wanted`.
fn is(wanted: &str, attempt: &Attempt, key: &str, home: &str) -> bool {
    match key {
        "source.ip" => return within(wanted, attempt.source),
        "destination.ip" => return within(wanted, attempt.destination),
        "destination.port" => return wanted == attempt.port.to_string(),
        _ => {}
    }
    let Some(identity) = &attempt.identity else { return false };
    let parts: Vec<&str> = identity.split('/').collect();
    // spiffe: / / domain / ns / namespace / sa / account
    let workload = match parts[3..] {
        ["ns", namespace, "sa", account] => Some((namespace, account)),
        _ => None,
    };
    match key {
        "source.principal" => glob(wanted, &identity["spiffe://".len()..]),
        "source.trustDomain" => glob(wanted, parts[2]),
        "source.namespace" => workload.is_some_and(|(namespace, _)| glob(wanted, namespace)),
        "source.serviceAccount" => {
            let wanted =
                if wanted.contains('/') { wanted.to_owned() } else { format!("{home}/{wanted}") };
            workload.is_some_and(|(namespace, account)| wanted == format!("{namespace}/{account}"))
        }
        other => panic!("unknown attribute {other}"),
    }
}

/// Returns whether `pattern` matches. `*` stands for any characters, at any position; alone, for at least one.
fn glob(pattern: &str, value: &str) -> bool {
    match pattern.chars().next() {
        _ if pattern == "*" => !value.is_empty(),
        None => value.is_empty(),
        Some('*') => (0..=value.len())
            .any(|at| value.is_char_boundary(at) && (glob_rest(&pattern[1..], &value[at..]))),
        Some(first) => {
            value.starts_with(first)
                && glob_rest(&pattern[first.len_utf8()..], &value[first.len_utf8()..])
        }
    }
}

fn glob_rest(pattern: &str, value: &str) -> bool {
    pattern == "*" || glob(pattern, value)
}

fn within(block: &str, address: IpAddr) -> bool {
    let (network, length) = match block.split_once('/') {
        Some((network, length)) => (network, Some(length.parse::<usize>().unwrap())),
        None => (block, None),
    };
    let network: IpAddr = network.parse().unwrap();
    let mapped = matches!(network, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    // The first 96 bits of a mapped block are the mapping itself; with a shorter prefix, it is a block of IPv6.
    let (network, length) = match length {
        Some(length) if mapped && length < 96 => (bits(network), length),
        Some(length) if mapped => (bits(network.to_canonical()), length - 96),
        Some(length) => (bits(network), length),
        None => (bits(network.to_canonical()), bits(network.to_canonical()).len()),
    };
    let address = bits(address.to_canonical());
    address.len() == network.len() && address[..length] == network[..length]
}

fn bits(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("{:032b}", v4.to_bits()),
        IpAddr::V6(v6) => format!("{:0128b}", v6.to_bits()),
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}
