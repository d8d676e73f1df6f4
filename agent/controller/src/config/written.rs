//! The configuration as it is written.

use std::{fmt, path::PathBuf};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_saphyr::Spanned;

use super::{ObjectName, PolicyStatusConfig};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Written {
    #[serde(default)]
    pub(super) listen: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) metrics: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) trust_domain: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) ttl: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) server_names: Option<Spanned<Vec<String>>>,
    #[serde(default)]
    pub(super) ca: Option<Spanned<WrittenCa>>,
    pub(super) callers: Spanned<WrittenCallers>,
    pub(super) pods: Spanned<WrittenPods>,
    #[serde(default)]
    pub(super) policy_status: Option<WrittenStatus>,
    #[serde(default)]
    pub(super) kubeconfig: Option<PathBuf>,
    #[serde(default)]
    pub(super) log_level: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenCa {
    pub(super) mode: Spanned<String>,
    #[serde(default)]
    pub(super) dir: Option<PathBuf>,
    #[serde(default)]
    pub(super) namespace: Option<String>,
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) publish_roots: Option<WrittenRoots>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenRoots {
    pub(super) namespace: String,
    pub(super) config_map: String,
    #[serde(default)]
    pub(super) new_root_delay: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenCallers {
    #[serde(default)]
    pub(super) tokens: Option<PathBuf>,
    #[serde(default)]
    pub(super) kubernetes: Option<WrittenReview>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenReview {
    #[serde(default)]
    pub(super) audience: Option<String>,
    pub(super) service_accounts: Spanned<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenStatus {
    namespace: String,
    lease: String,
    #[serde(default)]
    root_namespace: Option<String>,
}

/// `kubernetes`, or `{mesh: FILE}`.
#[derive(Default)]
pub(super) struct WrittenPods {
    pub(super) mesh: Option<PathBuf>,
    pub(super) kubernetes: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PodsMap {
    #[serde(default)]
    mesh: Option<PathBuf>,
}

struct PodsVisitor;

// === impl WrittenStatus ===

impl From<WrittenStatus> for PolicyStatusConfig {
    fn from(written: WrittenStatus) -> Self {
        let WrittenStatus { namespace, lease, root_namespace } = written;
        Self {
            lease: ObjectName { namespace, name: lease },
            root_namespace: root_namespace.unwrap_or_else(|| "istio-system".to_owned()),
        }
    }
}

// === impl WrittenPods ===

impl<'de> Deserialize<'de> for WrittenPods {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PodsVisitor)
    }
}

impl<'de> Visitor<'de> for PodsVisitor {
    type Value = WrittenPods;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`kubernetes`, or {mesh: FILE}")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<WrittenPods, E> {
        Ok(WrittenPods { kubernetes: text == "kubernetes", mesh: None })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<WrittenPods, A::Error> {
        let PodsMap { mesh } = PodsMap::deserialize(MapAccessDeserializer::new(map))?;
        Ok(WrittenPods { mesh, kubernetes: false })
    }
}
