//! The directory of policies: the version of each file that is in force, and what is denied because there is none.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use sluice_policy::{Coverage, ObjectId, PolicyObject, Withheld, coverage};

use crate::{Consequence, FileError, SourceError, files::PolicyText};

/// All policy files.
#[derive(Debug, Default)]
pub(crate) struct PolicyFiles {
    directory: PathBuf,
    /// The versions in force, by file name.
    accepted: BTreeMap<String, Version>,
    withheld: Vec<Withheld>,
    /// Whether any set of policies was ever known, even an empty one.
    known: bool,
}

#[derive(Debug)]
struct Version {
    text: String,
    objects: Vec<PolicyObject>,
}

/// One sweep over the directory.
#[derive(Default)]
struct Sweep {
    next: BTreeMap<String, Version>,
    withheld: Vec<Withheld>,
    errors: Vec<SourceError>,
    owners: HashMap<ObjectId, PathBuf>,
    changed: bool,
}

/// A file with a new text that could be read. Whether another file has its objects already is still open.
struct Candidate {
    file: PolicyText,
    version: Version,
    before: Option<Version>,
}

/// The result of a sweep.
#[derive(Debug)]
pub(crate) struct Swept {
    pub(crate) errors: Vec<SourceError>,
    /// Whether what is to be enforced may have changed.
    pub(crate) changed: bool,
}

// === impl PolicyFiles ===

impl PolicyFiles {
    /// Starts from copies of an earlier run. A copy that this version does not understand is ignored.
    pub(crate) fn restore(directory: &Path, copies: Option<BTreeMap<String, String>>) -> Self {
        let known = copies.is_some();
        let accepted = copies.unwrap_or_default().into_iter().filter_map(|(name, text)| {
            let objects = sluice_policy::read(&origin(&directory.join(&name)), &text).ok()?;
            Some((name, Version { text, objects }))
        });
        let (accepted, directory) = (accepted.collect(), directory.to_owned());
        Self { directory, accepted, withheld: Vec::new(), known }
    }

    /// Takes over what the directory holds now.
    pub(crate) fn update(&mut self, directory: Result<Vec<PolicyText>, FileError>) -> Swept {
        let files = match directory {
            Ok(files) => files,
            Err(error) => return self.without_directory(error),
        };
        self.known = true;
        let mut sweep = Sweep::default();
        let mut candidates = Vec::new();
        // Files that stay as they are come first: they keep their objects against newcomers.
        for file in files {
            let before = self.accepted.remove(&file.name);
            candidates.extend(sweep.keep_or_read(file, before));
        }
        for candidate in candidates {
            sweep.admit(candidate);
        }
        // What is still in `accepted` has no file any more.
        let changed = sweep.changed || !self.accepted.is_empty() || sweep.withheld != self.withheld;
        self.accepted = sweep.next;
        self.withheld = sweep.withheld;
        Swept { errors: sweep.errors, changed }
    }

    /// A directory that cannot be listed says nothing about deletions: everything stays.
    fn without_directory(&mut self, error: FileError) -> Swept {
        if self.known {
            let consequence = Consequence::LastGoodStays;
            return Swept { errors: vec![SourceError { error, consequence }], changed: false };
        }
        let everything =
            Withheld { origin: origin(&self.directory).into(), coverage: Coverage::Mesh };
        let changed = self.withheld != [everything.clone()];
        self.withheld = vec![everything];
        Swept { errors: vec![SourceError { error, consequence: Consequence::Denied }], changed }
    }

    pub(crate) fn objects(&self) -> Vec<PolicyObject> {
        self.accepted.values().flat_map(|version| version.objects.iter().cloned()).collect()
    }

    pub(crate) fn withheld(&self) -> &[Withheld] {
        &self.withheld
    }

    /// Returns the names and texts of the versions in force.
    pub(crate) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.accepted.iter().map(|(name, version)| (name.as_str(), version.text.as_str()))
    }

    /// Returns whether any set of policies is known, even an empty one.
    pub(crate) fn are_known(&self) -> bool {
        self.known
    }
}

// === impl Sweep ===

impl Sweep {
    /// Settles a file that did not change or cannot be read. Returns one with a new text as a candidate.
    fn keep_or_read(&mut self, file: PolicyText, mut before: Option<Version>) -> Option<Candidate> {
        let text = match &file.text {
            Ok(text) => text,
            Err(error) => {
                self.fall_back(&file, before, error.clone());
                return None;
            }
        };
        if let Some(version) = before.take_if(|before| before.text == *text) {
            match self.claim(&file, &version.objects) {
                Ok(()) => _ = self.next.insert(file.name, version),
                Err(error) => self.fall_back(&file, None, error),
            }
            return None;
        }
        let had_policies = before.as_ref().is_some_and(|before| !before.objects.is_empty());
        if had_policies && text.trim().is_empty() {
            let error = FileError::Emptied { file: file.path.clone() };
            self.fall_back(&file, before, error);
            return None;
        }
        match sluice_policy::read(&origin(&file.path), text) {
            Ok(objects) => {
                let version = Version { text: text.clone(), objects };
                Some(Candidate { file, version, before })
            }
            Err(error) => {
                self.fall_back(&file, before, error.into());
                None
            }
        }
    }

    fn admit(&mut self, candidate: Candidate) {
        let Candidate { file, version, before } = candidate;
        match self.claim(&file, &version.objects) {
            Ok(()) => {
                self.changed = true;
                self.next.insert(file.name, version);
            }
            Err(error) => self.fall_back(&file, before, error),
        }
    }

    /// Falls back to the version before. If there is none, or its objects have been taken meanwhile, everything that
    /// the file could be about is denied.
    fn fall_back(&mut self, file: &PolicyText, before: Option<Version>, error: FileError) {
        let before = before.filter(|before| self.claim(file, &before.objects).is_ok());
        let consequence = if let Some(before) = before {
            self.next.insert(file.name.clone(), before);
            Consequence::LastGoodStays
        } else {
            let coverage = file.text.as_ref().map_or(Coverage::Mesh, |text| coverage(text));
            self.withheld.push(Withheld { origin: origin(&file.path).into(), coverage });
            Consequence::Denied
        };
        self.errors.push(SourceError { error, consequence });
    }

    /// Makes the objects this file's own. The error names the file that already has one of them.
    fn claim(&mut self, file: &PolicyText, objects: &[PolicyObject]) -> Result<(), FileError> {
        for object in objects {
            if let Some(other) = self.owners.get(object.id()) {
                return Err(FileError::ClaimedElsewhere {
                    file: file.path.clone(),
                    object: object.id().clone(),
                    other: other.clone(),
                });
            }
        }
        let owned = objects.iter().map(|object| (object.id().clone(), file.path.clone()));
        self.owners.extend(owned);
        Ok(())
    }
}

fn origin(path: &Path) -> String {
    path.display().to_string()
}
