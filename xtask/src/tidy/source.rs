//! The rules for a single source file.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::Finding;

const MAX_LINES: usize = 400;
const MAX_TEST_LINES: usize = 600;

/// Names that would suit anything and so say nothing.
const EMPTY_NAMES: [&str; 7] = ["utils", "util", "helpers", "helper", "common", "misc", "stuff"];

/// Leftovers, each with what belongs in its place. They are spelt in two parts, so this file does not contain them.
const LEFTOVERS: [(&str, &str); 6] = [
    (concat!("TO", "DO"), "do it, or open an issue and take the note out"),
    (concat!("FIX", "ME"), "fix it, or open an issue and take the note out"),
    (concat!("XX", "X"), "say what is wrong in words, or mend it"),
    (concat!("unimplemented", "!"), "implement it, or make it an error that names the reason"),
    (concat!("todo", "!"), "implement it, or make it an error that names the reason"),
    (
        concat!("#[ign", "ore"),
        "make it small enough to run by default and full-size under SLUICE_FULL",
    ),
];

/// Returns every finding within one file.
pub(super) fn check(file: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !opens_with_docs(text) {
        findings.push(Finding::new(file, 1, "open the file with `//!` that says what it is for"));
    }
    let (limit, what) =
        if holds_tests(file) { (MAX_TEST_LINES, "tests") } else { (MAX_LINES, "code") };
    let lines = text.lines().count();
    if lines > limit {
        findings.push(Finding::new(
            file,
            limit + 1,
            format!("{lines} lines of {what}, {limit} are the limit: split it by concern"),
        ));
    }
    for name in file.with_extension("").iter().filter_map(|part| part.to_str()) {
        if EMPTY_NAMES.contains(&name) {
            findings.push(Finding::new(
                file,
                1,
                format!("`{name}` says nothing: name it after what it holds"),
            ));
        }
    }
    for (number, line) in text.lines().enumerate() {
        for (leftover, advice) in LEFTOVERS {
            if holds_word(line, leftover) {
                findings.push(Finding::new(file, number + 1, format!("`{leftover}`: {advice}")));
            }
        }
    }
    findings
}

/// The SAFETY texts of the tree. Two equal ones state the rule and not why it holds in their place.
#[derive(Default)]
pub(super) struct SafetyTexts(BTreeMap<String, Vec<(PathBuf, usize)>>);

impl SafetyTexts {
    pub(super) fn add(&mut self, file: &Path, text: &str) {
        let mut lines = text.lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            let Some(first) = line.trim().strip_prefix("// SAFETY:") else { continue };
            let mut words: Vec<&str> = first.split_whitespace().collect();
            while let Some((_, next)) = lines.next_if(|(_, next)| next.trim().starts_with("//")) {
                words.extend(next.trim().trim_start_matches('/').split_whitespace());
            }
            self.0.entry(words.join(" ")).or_default().push((file.to_owned(), number + 1));
        }
    }

    pub(super) fn repeated(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (text, places) in &self.0 {
            let Some(((first, line), others)) = places.split_first() else { continue };
            for (file, number) in others {
                let advice = format!(
                    "the same SAFETY text as {}:{line} (\"{text}\"): say why it holds here",
                    first.display()
                );
                findings.push(Finding::new(file, *number, advice));
            }
        }
        findings
    }
}

/// Returns whether the text opens with `//!`, on the first line or after crate attributes.
fn opens_with_docs(text: &str) -> bool {
    let mut within_attribute = false;
    for line in text.lines() {
        if line.starts_with("//!") {
            return true;
        }
        if !within_attribute && !line.starts_with("#!") {
            return false;
        }
        within_attribute = !line.trim_end().ends_with(']');
    }
    false
}

/// Returns whether the file is `foo/tests.rs` or below a crate's own `tests` directory. The lab library in `tests/src`
/// is code like any other.
fn holds_tests(file: &Path) -> bool {
    let below_root = file.components().skip(1);
    file.file_name().is_some_and(|name| name == "tests.rs")
        || below_root.map(std::path::Component::as_os_str).any(|part| part == "tests")
}

/// Returns whether `word` stands in `line` by itself and not within a longer word.
fn holds_word(line: &str, word: &str) -> bool {
    let starts_a_name = word.starts_with(|letter: char| letter.is_alphanumeric());
    let ends_a_name = word.ends_with(|letter: char| letter.is_alphanumeric());
    let continues = |letter: Option<char>| {
        letter.is_some_and(|letter| letter.is_alphanumeric() || letter == '_')
    };
    line.match_indices(word).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + word.len()..).and_then(|text| text.chars().next());
        !(starts_a_name && continues(before) || ends_a_name && continues(after))
    })
}

#[cfg(test)]
mod tests;
