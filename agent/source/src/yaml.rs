//! One YAML document into one value, with faults named by file and line.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{FileError, Problem};

pub(crate) fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, FileError> {
    serde_saphyr::from_str(text).map_err(|error| {
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
