//! From text to objects: everything that a policy says is understood, or the text is refused.

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

use crate::{ObjectId, PolicyObject};
use document::{Document, Header};

/// What a text that cannot be understood could be about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Coverage {
    /// Workloads of any namespace.
    Mesh,
    /// Workloads of these namespaces.
    Namespaces(BTreeSet<String>),
}

/// Reads every policy of a text of YAML documents, JSON included. `origin` names the text in errors,
/// such as its path. The whole text is refused for one fault: half a set of policies is another set.
///
/// A text without any object is fine and holds no policies.
pub fn read(origin: &str, text: &str) -> Result<Vec<PolicyObject>, ReadError> {
    let origin: Arc<str> = origin.into();
    let syntax = |error: serde_saphyr::Error| ReadError::syntax(&origin, &error);
    // Kinds first: "unknown field `replicas`" would not help the owner of a Deployment.
    for header in serde_saphyr::from_multiple::<Header>(text).map_err(syntax)? {
        header.check(&origin)?;
    }
    let mut objects = Vec::new();
    for document in serde_saphyr::from_multiple::<Document>(text).map_err(syntax)? {
        object::read_document(&origin, document, &mut objects)?;
    }
    refuse_duplicates(&objects)?;
    Ok(objects)
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

/// What a text could be about that [`read`] refuses: the namespaces that it names where its outline can
/// still be read, else the whole mesh.
pub fn coverage(text: &str) -> Coverage {
    let Ok(headers) = serde_saphyr::from_multiple::<Header>(text) else { return Coverage::Mesh };
    let mut namespaces = BTreeSet::new();
    for header in &headers {
        if header.namespaces(&mut namespaces).is_none() {
            return Coverage::Mesh;
        }
    }
    Coverage::Namespaces(namespaces)
}
