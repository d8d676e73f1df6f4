//! What matters to the mesh in each object: small enough to keep ten thousand of them in memory and write them to disk.

mod pod;
mod rule;
mod service;

pub use pod::Marks;
pub(crate) use pod::PodFacts;
pub(crate) use rule::{Reach, RuleFacts};
pub(crate) use service::{PortFacts, ServiceFacts, SliceFacts};

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Meaning;

/// Something wrong with an object, to be reported with its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Complaint {
    pub(crate) field: String,
    pub(crate) meaning: Meaning,
}

/// Namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Name {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol == "TCP")
}
