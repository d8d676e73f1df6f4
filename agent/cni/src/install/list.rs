//! A network list as text. Our entry is put in and taken out without touching another byte. Taking it out restores the
//! original exactly, so no copy of that has to be kept.

use serde_json::{Value, value::RawValue};

use crate::{
    PLUGIN,
    json::{Members, range_of},
};

/// Why a file is not a list that a runtime would load.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAList {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("`{0}` is missing or of the wrong type")]
    Field(&'static str),
}

/// A list that a runtime would load.
#[derive(Debug)]
pub(super) struct List<'a> {
    text: &'a str,
    plugins: Vec<&'a RawValue>,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) inlined_only: bool,
}

// === impl List ===

impl<'a> List<'a> {
    /// Parses a list, with the same requirements as libcni.
    pub(super) fn parse(text: &'a str) -> Result<Self, NotAList> {
        let members = Members::parse(text)?;
        let plugins = members.raw("plugins").ok_or(NotAList::Field("plugins"))?;
        let plugins: Vec<&RawValue> = serde_json::from_str(plugins.get())?;
        if plugins.is_empty() || plugins.iter().any(|plugin| type_of(plugin).is_none()) {
            return Err(NotAList::Field("plugins"));
        }
        let name = members.get("name")?.ok_or(NotAList::Field("name"))?;
        let mut versions: Vec<String> = members.get("cniVersions")?.unwrap_or_default();
        versions.extend(members.get::<String>("cniVersion")?);
        let version = versions.into_iter().max_by_key(|version| numbers(version));
        let inlined_only = match members.get("loadOnlyInlinedPlugins")? {
            Some(Value::Bool(only)) => only,
            Some(Value::String(only)) => only.eq_ignore_ascii_case("true"),
            _ => false,
        };
        // By the specification a list without a version is of 0.1.0.
        let version = version.unwrap_or_else(|| "0.1.0".to_owned());
        Ok(Self { text, plugins, name, version, inlined_only })
    }

    /// Returns the `type` of the first plugin that is not ours.
    pub(super) fn main_plugin(&self) -> Option<String> {
        self.others().next()
    }

    /// The `type` of each plugin that is not ours.
    pub(super) fn others(&self) -> impl Iterator<Item = String> {
        self.plugins.iter().filter_map(|plugin| type_of(plugin)).filter(|kind| kind != PLUGIN)
    }

    pub(super) fn plugins(&self) -> &[&'a RawValue] {
        &self.plugins
    }

    pub(super) fn has_entry(&self) -> bool {
        self.plugins.iter().any(|plugin| is_ours(plugin))
    }

    /// Returns the text with our entry at the end and nowhere else.
    pub(super) fn with_entry(&self, entry: &str) -> String {
        if self.is_entered(entry) {
            return self.text.to_owned();
        }
        let without = self.without_entry();
        let Ok(list) = List::parse(&without) else { return self.text.to_owned() };
        list.append(entry)
    }

    fn is_entered(&self, entry: &str) -> bool {
        let same = |plugin: &RawValue| {
            let value = |text: &str| serde_json::from_str::<Value>(text).ok();
            value(plugin.get()) == value(entry)
        };
        self.plugins.iter().filter(|plugin| is_ours(plugin)).count() == 1
            && self.plugins.last().is_some_and(|last| same(last))
    }

    /// Appends the entry, after the same white space as precedes the last element.
    fn append(&self, entry: &str) -> String {
        let Some(last) = self.plugins.last() else { return self.text.to_owned() };
        let last = range_of(self.text, last);
        let before = self.text.get(..last.start).unwrap_or_default();
        let space = before.get(before.trim_end().len()..).unwrap_or_default();
        let head = self.text.get(..last.end).unwrap_or_default();
        let tail = self.text.get(last.end..).unwrap_or_default();
        format!("{head},{space}{entry}{tail}")
    }

    /// Returns the text without any entry of ours. A list that has nothing else stays as it is.
    pub(super) fn without_entry(&self) -> String {
        let mut text = self.text.to_owned();
        while let Ok(list) = List::parse(&text) {
            let ours = list.plugins.iter().position(|plugin| is_ours(plugin));
            let Some(ours) = ours.filter(|_| list.plugins.len() > 1) else { break };
            let end_of = |index: usize| list.plugins.get(index).map(|raw| range_of(list.text, raw));
            let cut = match (ours.checked_sub(1).and_then(end_of), end_of(ours), end_of(ours + 1)) {
                (Some(previous), Some(own), _) => previous.end..own.end,
                (None, Some(own), Some(next)) => own.start..next.start,
                _ => break,
            };
            let mut shorter = list.text.to_owned();
            shorter.replace_range(cut, "");
            text = shorter;
        }
        text
    }
}

/// Parses a file with a single plugin, as specifications before 1.0.0 had them. Returns the plugin's `type` and, if
/// given, the CNI version.
pub(super) fn single(text: &str) -> Result<(String, Option<String>), NotAList> {
    let members = Members::parse(text)?;
    let kind: String = members.get("type")?.ok_or(NotAList::Field("type"))?;
    if kind.is_empty() || members.get::<String>("name")?.is_none() {
        return Err(NotAList::Field("name"));
    }
    Ok((kind, members.get("cniVersion")?))
}

fn is_ours(plugin: &RawValue) -> bool {
    type_of(plugin).is_some_and(|kind| kind == PLUGIN)
}

fn type_of(plugin: &RawValue) -> Option<String> {
    let kind: Option<String> = Members::parse(plugin.get()).ok()?.get("type").ok()?;
    kind.filter(|kind| !kind.is_empty())
}

/// Returns the numbers that a version is ordered by.
fn numbers(version: &str) -> Vec<u32> {
    version.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}
