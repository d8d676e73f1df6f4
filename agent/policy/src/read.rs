//! Reads policy objects from text. Everything that a policy says is understood, or the text is refused.

mod document;
mod error;
mod object;
mod rule;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use error::{Place, Problem, ReadError};

use document::{Document, Header};
use serde::de::DeserializeOwned;

use crate::{ObjectId, PolicyObject};

/// Limits for one text, which may be the export of a large cluster. The YAML reader's defaults are meant for texts
/// from strangers.
const MAX_DOCUMENTS: usize = 100_000;
const MAX_NODES: usize = 10_000_000;

/// The workloads that a text could cover although it cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Coverage {
    /// Workloads of any namespace.
    Mesh,
    /// Workloads of these namespaces.
    Namespaces(BTreeSet<String>),
}

/// Reads every policy in a text of YAML documents, which may be JSON. `origin`, such as a path, names the text in
/// errors. One fault refuses the whole text: half a set of policies is a different set.
///
/// A text without any objects is valid and holds no policies.
pub fn read(origin: &str, text: &str) -> Result<Vec<PolicyObject>, ReadError> {
    let origin: Arc<str> = origin.into();
    let syntax = |error: serde_saphyr::Error| ReadError::syntax(&origin, &error);
    // Kinds first: "unknown field `replicas`" would not help the owner of a Deployment.
    for header in documents::<Header>(text).map_err(syntax)? {
        header.check(&origin)?;
    }
    let mut objects = Vec::new();
    for document in documents::<Document>(text).map_err(syntax)? {
        object::read_document(&origin, document, &mut objects)?;
    }
    refuse_duplicates(&objects)?;
    Ok(objects)
}

fn documents<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, serde_saphyr::Error> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_documents: MAX_DOCUMENTS,
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
        },
    };
    serde_saphyr::from_multiple_with_options(text, options)
}

fn refuse_duplicates(objects: &[PolicyObject]) -> Result<(), ReadError> {
    let mut seen: BTreeMap<&ObjectId, &PolicyObject> = BTreeMap::new();
    for object in objects {
        if let Some(first) = seen.insert(&object.id, object) {
            return Err(ReadError::Content {
                place: object.place.clone(),
                field: "metadata.name".to_owned(),
                problem: Problem::Duplicate {
                    object: object.id.clone(),
                    first: first.place.clone(),
                },
            });
        }
    }
    Ok(())
}

/// Returns what a text that [`read`] refuses could cover: the namespaces that its objects name, or the whole mesh if
/// one names none or the outline cannot be read.
pub fn coverage(text: &str) -> Coverage {
    let Ok(headers) = documents::<Header>(text) else { return Coverage::Mesh };
    let mut namespaces = BTreeSet::new();
    for header in &headers {
        if header.namespaces(&mut namespaces).is_none() {
            return Coverage::Mesh;
        }
    }
    Coverage::Namespaces(namespaces)
}
