//! Reads one YAML document into one value, with faults named by file and line.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{FileError, Problem};

/// The most nodes that a document may have. A mesh of 100,000 pods has about 2 million; the reader's own limit is meant
/// for texts from strangers.
const MAX_NODES: usize = 10_000_000;

/// Reads `text`, the contents of `file`. `T` itself decides about fields that it does not know (`deny_unknown_fields`).
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, FileError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_NODES,
            max_events: 3 * MAX_NODES,
            max_total_scalar_bytes: usize::MAX,
        },
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let (line, column) =
            error.location().map_or((1, 1), |location| (location.line(), location.column()));
        let message = error.without_snippet().to_string();
        // The reader's own ending repeats what the error says.
        let ending = format!(" at line {line}, column {column}");
        let message = message.strip_suffix(&ending).unwrap_or(&message).to_owned();
        FileError::Syntax { file: file.to_owned(), line, column, message }
    })
}

pub(crate) fn content(
    file: &Path,
    at: serde_saphyr::Location,
    field: impl Into<String>,
    problem: Problem,
) -> FileError {
    FileError::Content { file: file.to_owned(), line: at.line(), field: field.into(), problem }
}
