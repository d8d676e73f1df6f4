//! The objects as they are written: Kubernetes' envelope around the two specs.
//!
//! [`Document`] and what it contains refuse fields that they do not know, except in `metadata` and `status`, which
//! carry nothing to enforce. Values keep the line that they were read from.

use std::{collections::BTreeSet, fmt, sync::Arc};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_saphyr::Spanned;

use super::{Place, Problem, ReadError};

/// The outline of any Kubernetes object.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Header {
    pub(super) api_version: Option<Spanned<String>>,
    pub(super) kind: Option<Spanned<String>>,
    #[serde(default)]
    metadata: Option<HeaderMetadata>,
    #[serde(default)]
    items: Option<Vec<Header>>,
}

#[derive(Debug, Deserialize)]
struct HeaderMetadata {
    #[serde(default)]
    namespace: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Document {
    /// Checked by [`Header::check`].
    #[serde(default, rename = "apiVersion")]
    _api_version: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) kind: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) metadata: Option<Spanned<Metadata>>,
    #[serde(default)]
    pub(super) spec: Option<Spec>,
    #[serde(default)]
    pub(super) items: Option<Vec<Spanned<Document>>>,
    #[serde(default, rename = "status")]
    _status: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default)]
    pub(super) name: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) namespace: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) creation_timestamp: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) annotations: Option<Annotations>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Annotations {
    #[serde(default, rename = "istio.io/dry-run")]
    pub(super) dry_run: Option<Spanned<String>>,
}

/// The fields of both kinds. Those that the object's kind does not have are refused later.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    #[serde(default)]
    pub(super) selector: Option<Spanned<Selector>>,
    #[serde(default)]
    pub(super) mtls: Option<Spanned<MutualTls>>,
    #[serde(default)]
    pub(super) port_level_mtls: Option<Spanned<Pairs<Option<MutualTls>>>>,
    #[serde(default)]
    pub(super) action: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) rules: Option<Spanned<Vec<Spanned<Option<Rule>>>>>,
    #[serde(default)]
    pub(super) target_ref: Option<Spanned<IgnoredAny>>,
    #[serde(default)]
    pub(super) target_refs: Option<Spanned<Vec<IgnoredAny>>>,
    #[serde(default)]
    pub(super) provider: Option<Spanned<IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Selector {
    #[serde(default)]
    pub(super) match_labels: Option<Pairs<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MutualTls {
    #[serde(default)]
    pub(super) mode: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rule {
    #[serde(default)]
    pub(super) from: Option<Spanned<Vec<Spanned<Option<From>>>>>,
    #[serde(default)]
    pub(super) to: Option<Spanned<Vec<Spanned<Option<To>>>>>,
    #[serde(default)]
    pub(super) when: Option<Vec<Spanned<Option<Condition>>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct From {
    #[serde(default)]
    pub(super) source: Option<Source>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct To {
    #[serde(default)]
    pub(super) operation: Option<Operation>,
}

/// A list that may be absent, with the line of each of its values.
pub(super) type Values = Option<Spanned<Vec<Spanned<String>>>>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
pub(super) struct Source {
    pub(super) principals: Values,
    pub(super) not_principals: Values,
    pub(super) request_principals: Values,
    pub(super) not_request_principals: Values,
    pub(super) namespaces: Values,
    pub(super) not_namespaces: Values,
    pub(super) service_accounts: Values,
    pub(super) not_service_accounts: Values,
    pub(super) trust_domains: Values,
    pub(super) not_trust_domains: Values,
    pub(super) ip_blocks: Values,
    pub(super) not_ip_blocks: Values,
    pub(super) remote_ip_blocks: Values,
    pub(super) not_remote_ip_blocks: Values,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Operation {
    pub(super) hosts: Values,
    pub(super) not_hosts: Values,
    pub(super) ports: Values,
    pub(super) not_ports: Values,
    pub(super) methods: Values,
    pub(super) not_methods: Values,
    pub(super) paths: Values,
    pub(super) not_paths: Values,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Condition {
    #[serde(default)]
    pub(super) key: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) values: Values,
    #[serde(default)]
    pub(super) not_values: Values,
}

/// A mapping that keeps the line of each key, and every entry even where two keys mean the same.
#[derive(Debug)]
pub(super) struct Pairs<T>(pub(super) Vec<(Spanned<String>, T)>);

// === impl Header ===

impl Header {
    /// Refuses kinds that are not policies. The items of a typed list need no kind of their own.
    pub(super) fn check(&self, origin: &Arc<str>) -> Result<(), ReadError> {
        let text = |field: &Option<Spanned<String>>| {
            field.as_ref().map(|text| text.value.clone()).unwrap_or_default()
        };
        let (version, kind) = (text(&self.api_version), text(&self.kind));
        let is_list = match (version.as_str(), kind.as_str()) {
            ("v1", "List") => true,
            ("security.istio.io/v1" | "security.istio.io/v1beta1", kind) => match kind {
                "PeerAuthentication" | "AuthorizationPolicy" => false,
                "PeerAuthenticationList" | "AuthorizationPolicyList" => return Ok(()),
                _ => return Err(self.foreign(origin, kind, &version)),
            },
            _ => return Err(self.foreign(origin, &kind, &version)),
        };
        if is_list {
            for item in self.items.iter().flatten() {
                item.check(origin)?;
            }
        }
        Ok(())
    }

    fn foreign(&self, origin: &Arc<str>, kind: &str, version: &str) -> ReadError {
        let said = self.kind.as_ref().or(self.api_version.as_ref());
        let line = said.map_or(1, |text| text.referenced.line());
        let or_nothing = |text: &str| if text.is_empty() { "nothing" } else { text }.to_owned();
        ReadError::Content {
            place: Place { origin: Arc::clone(origin), line },
            field: "kind".to_owned(),
            problem: Problem::Kind { kind: or_nothing(kind), version: or_nothing(version) },
        }
    }

    /// Collects the namespaces that the object, or the items of a list, name. Returns `None` if one names none.
    pub(super) fn namespaces(&self, into: &mut BTreeSet<String>) -> Option<()> {
        if let Some(items) = &self.items {
            return items.iter().try_for_each(|item| item.namespaces(into));
        }
        let namespace = self.metadata.as_ref()?.namespace.as_ref()?;
        into.insert(namespace.clone());
        Some(())
    }
}

// === impl Pairs ===

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pairs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Collect<T> {
            type Value = Pairs<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(Collect(std::marker::PhantomData))
    }
}
