//! `sluice policy check`: says what the mesh would make of policies before they are applied.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context;
use serde::Serialize;
use sluice_policy::{
    Compiled, Finding, ObjectId, Place, PolicyObject, PolicySet, Problem, ReadError, Severity,
};

use crate::{
    args::{CheckOptions, Output},
    logging::print,
    view::table::Table,
};

/// The result, as the JSON output shows it.
#[derive(Debug, Serialize)]
struct Report {
    /// Policies that could be read.
    policies: usize,
    refused: usize,
    warnings: usize,
    remarks: Vec<Remark>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Remark {
    /// `refused`, `warning` or `notice`.
    severity: &'static str,
    file: String,
    line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    message: String,
}

/// Checks the files together, since some policies have no effect because of others.
pub(crate) fn run(options: &CheckOptions) -> anyhow::Result<ExitCode> {
    let mut texts = Vec::new();
    for path in &options.files {
        gather(path, &mut texts)?;
    }
    let report = check(&texts, &options.root_namespace);
    match options.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
        Output::Table => print(&report.text())?,
    }
    Ok(if report.refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Adds the text of the file at `path`, or of the policy files below it, each with its name.
fn gather(path: &Path, texts: &mut Vec<(String, String)>) -> anyhow::Result<()> {
    let name = path.display().to_string();
    if name == "-" {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
        texts.push(("standard input".to_owned(), text));
    } else if path.is_dir() {
        let unreadable = || format!("cannot read the directory {name}");
        let entries = fs::read_dir(path).with_context(unreadable)?;
        let entries: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
        let mut entries = entries.with_context(unreadable)?;
        entries.sort();
        for entry in entries {
            let is_policy = entry
                .extension()
                .is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known));
            if entry.is_dir() || is_policy {
                gather(&entry, texts)?;
            }
        }
    } else {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
        texts.push((name, text));
    }
    Ok(())
}

fn check(texts: &[(String, String)], root_namespace: &str) -> Report {
    let mut remarks = Vec::new();
    let mut objects: BTreeMap<ObjectId, PolicyObject> = BTreeMap::new();
    for (name, text) in texts {
        match sluice_policy::read(name, text) {
            Ok(read) => {
                for object in read {
                    if let Some(first) = objects.get(object.id()) {
                        remarks.push(refused(&twice(&object, first)));
                    } else {
                        objects.insert(object.id().clone(), object);
                    }
                }
            }
            Err(error) => remarks.push(refused(&error)),
        }
    }
    let objects: Vec<PolicyObject> = objects.into_values().collect();
    let Compiled { findings, .. } = PolicySet::compile(&objects, &[], root_namespace);
    remarks.extend(findings.into_iter().map(Remark::from));
    let count = |severity| remarks.iter().filter(|remark| remark.severity == severity).count();
    let (refused, warnings) = (count("refused"), count("warning"));
    Report { policies: objects.len(), refused, warnings, remarks }
}

fn twice(object: &PolicyObject, first: &PolicyObject) -> ReadError {
    ReadError::Content {
        place: object.place().clone(),
        field: "metadata.name".to_owned(),
        problem: Problem::Duplicate { object: object.id().clone(), first: first.place().clone() },
    }
}

fn refused(error: &ReadError) -> Remark {
    let (place, field, message) = match error {
        ReadError::Content { place, field, problem } => {
            (place.clone(), Some(field.clone()), problem.to_string())
        }
        ReadError::Syntax { place, message, .. } => {
            (place.clone(), None, format!("{message}: correct or remove it"))
        }
        error => (Place { origin: "".into(), line: 0 }, None, error.to_string()),
    };
    let (file, line) = (place.origin.to_string(), place.line);
    Remark { severity: "refused", file, line, object: None, field, message }
}

// === impl Remark ===

impl From<Finding> for Remark {
    fn from(finding: Finding) -> Self {
        let Finding { object, place, field, severity, meaning } = finding;
        Self {
            severity: match severity {
                Severity::Notice => "notice",
                Severity::Warning => "warning",
            },
            file: place.origin.to_string(),
            line: place.line,
            object: Some(object.to_string()),
            field: Some(field),
            message: meaning.to_string(),
        }
    }
}

// === impl Report ===

impl Report {
    fn text(&self) -> String {
        let Self { policies, refused, warnings, remarks } = self;
        let mut table = Table::new(&["SEVERITY", "PLACE", "OBJECT", "FIELD", "WHAT IT MEANS"]);
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        for remark in remarks {
            let Remark { severity, file, line, object, field, message } = remark;
            table.row(&[
                (*severity).to_owned(),
                format!("{file}:{line}"),
                shown(object),
                shown(field),
                message.clone(),
            ]);
        }
        let text = table.render("every policy is enforced as written");
        format!("{text}\npolicies read: {policies}, refused: {refused}, warnings: {warnings}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
                        metadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";
    const L7: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                      metadata: {name: get, namespace: shop}\n\
                      spec: {rules: [{to: [{operation: {methods: [GET]}}]}]}\n";

    fn of(texts: &[(&str, &str)]) -> Report {
        let texts: Vec<_> =
            texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        check(&texts, "istio-system")
    }

    #[test]
    fn what_is_enforced_as_written_needs_no_words() {
        let report = of(&[("a.yaml", GOOD)]);
        assert_eq!((report.policies, report.refused, report.warnings), (1, 0, 0));
        let said =
            "every policy is enforced as written\n\npolicies read: 1, refused: 0, warnings: 0\n";
        assert_eq!(report.text(), said);
    }

    #[test]
    fn what_narrows_is_a_warning_with_its_field_and_meaning() {
        let report = of(&[("a.yaml", GOOD), ("b.yaml", L7)]);
        assert_eq!((report.refused, report.warnings), (0, 1));
        let text = report.text();
        for part in
            ["b.yaml:4", "shop/get", "spec.rules[0].to[0].operation.methods", "never matches"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn what_is_refused_is_counted_whether_by_value_shape_or_twice_there() {
        let audit = L7.replace("spec: {", "spec: {action: AUDIT, ");
        let shape = GOOD.replace("mtls", "mtsl");
        for (texts, said) in [
            ([("a.yaml", audit.as_str()), ("b.yaml", GOOD)], "\"AUDIT\" is not enforced here"),
            ([("a.yaml", &shape), ("b.yaml", L7)], "unknown field `mtsl`"),
            ([("a.yaml", GOOD), ("b.yaml", GOOD)], "is already defined at a.yaml"),
        ] {
            let report = of(&texts);
            assert_eq!(report.refused, 1, "{report:?}");
            assert!(report.text().contains(said), "{}", report.text());
        }
    }

    #[test]
    fn directories_are_read_with_what_is_below_them() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("shop")).unwrap();
        fs::write(directory.path().join("shop/a.yaml"), GOOD).unwrap();
        fs::write(directory.path().join("b.json"), "{}").unwrap();
        fs::write(directory.path().join("README.md"), "not a policy").unwrap();
        let mut texts = Vec::new();
        gather(directory.path(), &mut texts).unwrap();
        let names: Vec<_> =
            texts.iter().map(|(name, _)| name.rsplit('/').next().unwrap()).collect();
        assert_eq!(names, ["b.json", "a.yaml"]);
        let missing = gather(&directory.path().join("none"), &mut texts).unwrap_err();
        assert!(format!("{missing:#}").contains("cannot read"), "{missing:#}");
    }
}
