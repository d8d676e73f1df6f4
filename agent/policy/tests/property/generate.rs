//! Random policies and connections over a world small enough that they often meet.

use std::{collections::BTreeMap, net::IpAddr};

use proptest::{
    collection::{btree_map, vec},
    prelude::*,
    sample::select,
};
use serde_json::{Map, Value, json};

pub(crate) const ROOT_NAMESPACE: &str = "istio-system";
const NAMESPACES: [&str; 3] = [ROOT_NAMESPACE, "shop", "pay"];
const PORTS: [u16; 3] = [80, 81, 8080];
const IDENTITIES: [&str; 8] = [
    "spiffe://cluster.local/ns/shop/sa/web",
    "spiffe://cluster.local/ns/shop/sa/cart",
    "spiffe://cluster.local/ns/pay/sa/web",
    "spiffe://cluster.local/ns/istio-system/sa/gateway",
    "spiffe://other.example/ns/shop/sa/web",
    "spiffe://other.example/ns/pay/sa/cart",
    "spiffe://other.example/vm/db",
    "spiffe://other.example",
];
const ADDRESSES: [&str; 7] =
    ["10.0.0.1", "10.0.1.1", "10.1.0.1", "192.0.2.7", "fd00::1", "fd00::1:1", "::ffff:10.0.0.1"];

/// One set of policies, and connections to judge by it.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) objects: Vec<Value>,
    pub(crate) attempts: Vec<Attempt>,
}

/// A connection to a workload.
#[derive(Clone, Debug)]
pub(crate) struct Attempt {
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) identity: Option<String>,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
}

pub(crate) fn cases(connections: usize) -> impl Strategy<Value = Case> {
    (
        vec(peer_authentication(), 0..5),
        vec(authorization_policy(), 0..5),
        vec(attempt(), connections),
    )
        .prop_map(|(peers, policies, attempts)| {
            let mut objects: Vec<Value> = peers.into_iter().chain(policies).collect();
            for (position, object) in objects.iter_mut().enumerate() {
                // Unique names that do not follow the order of the text.
                object["metadata"]["name"] = json!(format!("p{}", (position * 7) % 10));
            }
            Case { objects, attempts }
        })
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let identity = prop_oneof![2 => Just(None), 3 => select(&IDENTITIES).prop_map(Some)];
    let address = || select(&ADDRESSES).prop_map(|text| text.parse().unwrap());
    (select(&NAMESPACES), labels(), identity, address(), address(), select(&PORTS)).prop_map(
        |(namespace, labels, identity, source, destination, port)| Attempt {
            namespace: namespace.to_owned(),
            labels,
            identity: identity.map(str::to_owned),
            source,
            destination,
            port,
        },
    )
}

fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let key = select(&["app", "tier"][..]).prop_map(str::to_owned);
    let value = select(&["a", "b"][..]).prop_map(str::to_owned);
    btree_map(key, value, 0..3)
}

fn peer_authentication() -> impl Strategy<Value = Value> {
    let mode = || select(&["STRICT", "PERMISSIVE", "DISABLE", "UNSET"][..]);
    let ports = btree_map(select(&PORTS).prop_map(|port| port.to_string()), mode(), 0..3);
    (metadata(), prop::option::of(labels()), prop::option::of(mode()), ports).prop_map(
        |(metadata, selector, mode, ports)| {
            let mut spec = Map::new();
            let selects = selector.as_ref().is_some_and(|labels| !labels.is_empty());
            if let Some(labels) = selector {
                spec.insert("selector".into(), json!({ "matchLabels": labels }));
            }
            if let Some(mode) = mode {
                spec.insert("mtls".into(), json!({ "mode": mode }));
            }
            if selects && !ports.is_empty() {
                let ports: Map<_, _> =
                    ports.into_iter().map(|(port, mode)| (port, json!({ "mode": mode }))).collect();
                spec.insert("portLevelMtls".into(), ports.into());
            }
            object("PeerAuthentication", &metadata, &spec)
        },
    )
}

fn authorization_policy() -> impl Strategy<Value = Value> {
    let action = prop::option::of(select(&["ALLOW", "DENY"][..]));
    let dry_run = prop::option::weighted(0.1, any::<bool>());
    let rules = prop::option::weighted(0.9, vec(rule(), 0..4));
    (metadata(), prop::option::of(labels()), action, dry_run, rules).prop_map(
        |(mut metadata, selector, action, dry_run, rules)| {
            let mut spec = Map::new();
            if let Some(labels) = selector {
                spec.insert("selector".into(), json!({ "matchLabels": labels }));
            }
            if let Some(action) = action {
                spec.insert("action".into(), json!(action));
            }
            if let Some(rules) = rules {
                spec.insert("rules".into(), json!(rules));
            }
            if let Some(dry_run) = dry_run {
                metadata["annotations"] = json!({ "istio.io/dry-run": dry_run.to_string() });
            }
            object("AuthorizationPolicy", &metadata, &spec)
        },
    )
}

fn metadata() -> impl Strategy<Value = Value> {
    let created = prop::option::of((1..4u8).prop_map(|day| format!("2025-01-0{day}T00:00:00Z")));
    (select(&NAMESPACES), created).prop_map(|(namespace, created)| {
        let mut metadata = json!({ "namespace": namespace });
        if let Some(created) = created {
            metadata["creationTimestamp"] = json!(created);
        }
        metadata
    })
}

fn object(kind: &str, metadata: &Value, spec: &Map<String, Value>) -> Value {
    json!({ "apiVersion": "security.istio.io/v1", "kind": kind, "metadata": metadata, "spec": spec })
}

fn rule() -> impl Strategy<Value = Value> {
    let clause = |entry: BoxedStrategy<Value>| prop::option::of(vec(entry, 1..3));
    let from = clause(source().prop_map(|source| json!({ "source": source })).boxed());
    let to = clause(operation().prop_map(|operation| json!({ "operation": operation })).boxed());
    (from, to, vec(condition(), 0..2)).prop_map(|(from, to, when)| {
        let mut rule = Map::new();
        if let Some(from) = from {
            rule.insert("from".into(), json!(from));
        }
        if let Some(to) = to {
            rule.insert("to".into(), json!(to));
        }
        if !when.is_empty() {
            rule.insert("when".into(), json!(when));
        }
        rule.into()
    })
}

fn source() -> impl Strategy<Value = Value> {
    let identity = prop_oneof![
        3 => fields(vec![("principals", principal()), ("notPrincipals", principal())]),
        3 => fields(vec![("namespaces", namespace()), ("notNamespaces", namespace())]),
        2 => fields(vec![
            ("principals", principal()),
            ("notNamespaces", namespace()),
        ]),
        3 => fields(vec![("serviceAccounts", account()), ("notServiceAccounts", account())]),
        2 => fields(vec![("trustDomains", trust_domain()), ("notTrustDomains", trust_domain())]),
    ];
    let addresses = fields(vec![("ipBlocks", block()), ("notIpBlocks", block())]);
    let http = fields(vec![
        ("requestPrincipals", Just("*".to_owned()).boxed()),
        ("notRemoteIpBlocks", block()),
    ]);
    (
        prop::option::weighted(0.8, identity),
        prop::option::weighted(0.3, addresses),
        prop::option::weighted(0.05, http),
    )
        .prop_map(|(identity, addresses, http)| merged([identity, addresses, http]))
        .prop_filter("a source says something", says_something)
}

fn operation() -> impl Strategy<Value = Value> {
    let ports = fields(vec![("ports", port()), ("notPorts", port())]);
    let http = fields(vec![
        ("methods", Just("GET".to_owned()).boxed()),
        ("notPaths", Just("/admin*".to_owned()).boxed()),
        ("hosts", Just("a.example".to_owned()).boxed()),
    ]);
    (prop::option::weighted(0.9, ports), prop::option::weighted(0.08, http))
        .prop_map(|(ports, http)| merged([ports, http]))
        .prop_filter("an operation says something", says_something)
}

fn condition() -> impl Strategy<Value = Value> {
    let of = |key: &'static str, value: BoxedStrategy<String>| {
        fields(vec![("values", value.clone()), ("notValues", value)]).prop_map(
            move |mut condition| {
                condition.insert("key".into(), json!(key));
                Value::from(condition)
            },
        )
    };
    prop_oneof![
        2 => of("source.ip", block()),
        2 => of("source.namespace", namespace()),
        2 => of("source.principal", principal()),
        1 => of("source.trustDomain", trust_domain()),
        1 => of("source.serviceAccount", account()),
        2 => of("destination.ip", block()),
        2 => of("destination.port", port()),
        1 => of("request.headers[x]", Just("1".to_owned()).boxed()),
    ]
    .prop_filter("a condition has values", |condition| {
        ["values", "notValues"]
            .iter()
            .any(|list| condition[*list].as_array().is_some_and(|list| !list.is_empty()))
    })
}

/// Makes lists for some of these fields, some of them empty.
fn fields(
    choices: Vec<(&'static str, BoxedStrategy<String>)>,
) -> BoxedStrategy<Map<String, Value>> {
    let lists: Vec<_> = choices
        .into_iter()
        .map(|(name, value)| {
            prop::option::weighted(0.6, vec(value, 0..3))
                .prop_map(move |list| list.map(|list| (name.to_owned(), json!(list))))
        })
        .collect();
    lists.prop_map(|lists| lists.into_iter().flatten().collect()).boxed()
}

fn merged<const N: usize>(parts: [Option<Map<String, Value>>; N]) -> Value {
    parts.into_iter().flatten().flatten().collect::<Map<_, _>>().into()
}

fn says_something(entry: &Value) -> bool {
    entry.as_object().is_some_and(|fields| {
        fields.values().any(|list| list.as_array().is_some_and(|list| !list.is_empty()))
    })
}

/// Makes a pattern from a text: the text itself, a prefix or suffix of it with a wildcard, or the wildcard alone.
fn pattern(texts: Vec<&'static str>) -> BoxedStrategy<String> {
    (select(texts), any::<prop::sample::Index>(), 0..5u8)
        .prop_map(|(text, cut, form)| match form {
            0 => "*".to_owned(),
            1 => format!("{}*", &text[..=cut.index(text.len() - 1)]),
            2 => format!("*{}", &text[cut.index(text.len())..]),
            _ => text.to_owned(),
        })
        .boxed()
}

fn principal() -> BoxedStrategy<String> {
    pattern(IDENTITIES.iter().map(|identity| &identity["spiffe://".len()..]).collect())
}

fn namespace() -> BoxedStrategy<String> {
    pattern(NAMESPACES.to_vec())
}

fn trust_domain() -> BoxedStrategy<String> {
    pattern(vec!["cluster.local", "other.example", "other"])
}

fn account() -> BoxedStrategy<String> {
    select(&["web", "cart", "shop/web", "pay/web", "pay/cart", "istio-system/gateway"][..])
        .prop_map(str::to_owned)
        .boxed()
}

fn port() -> BoxedStrategy<String> {
    select(&PORTS).prop_map(|port| port.to_string()).boxed()
}

fn block() -> BoxedStrategy<String> {
    (select(&ADDRESSES), prop::option::weighted(0.7, 0..129u8))
        .prop_map(|(address, length)| {
            let longest = if address.contains(':') { 128 } else { 32 };
            length.map_or(address.to_owned(), |length| {
                format!("{address}/{}", length % (longest + 1))
            })
        })
        .boxed()
}
