//! A file with a single plugin becomes a list of two.
//!
//! The list is there before the single file goes, and the single file is back before the list goes. The single file
//! sorts first: a reader in between finds the network as it was, without us.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    InstallError, Installed,
    directory::{Directory, Text, check_version},
    draft::{self, Ownership, failed},
    list::{self, List},
};

/// The suffix of a single file that has been put aside; no runtime reads it.
const SAVED: &str = "sluice-saved";

pub(super) fn enter(
    directory: &Directory,
    file: &Text,
    entry: &str,
) -> Result<Installed, InstallError> {
    let Ok((main, version)) = list::single(&file.text) else { return Ok(Installed::Waiting) };
    let version = version.unwrap_or_else(|| "0.1.0".to_owned());
    check_version(&file.path, &version)?;
    let list = file.path.with_extension("conflist");
    let saved = saved(&file.path);
    if let Ok(present) = fs::read_to_string(&list)
        && !is_made_from(&present, &file.text)
        && !fs::read_to_string(&saved).is_ok_and(|saved| is_made_from(&present, &saved))
    {
        return Err(InstallError::TwoForms { single: file.path.clone(), list });
    }
    let text = as_list(&file.text, &version, entry);
    draft::replace(directory.path(), &list, text.as_bytes(), Ownership::of(&file.path)?)?;
    draft::rename(&file.path, &saved)?;
    Ok(Installed::InPlace { file: list, changed: true, main })
}

/// Puts back the single files whose lists are still what we made of them.
pub(super) fn leave(directory: &Directory) -> Result<(), InstallError> {
    for saved in directory.files(&[SAVED])? {
        let single = saved.with_extension("");
        let list = single.with_extension("conflist");
        let original = fs::read_to_string(&saved).map_err(failed("read", &saved))?;
        let is_ours =
            fs::read_to_string(&list).is_ok_and(|present| is_made_from(&present, &original));
        if is_ours && !single.exists() {
            draft::rename(&saved, &single)?;
            draft::remove(&list)?;
        } else {
            // Others have changed the list or written the file again; our entry is taken out of what they have now.
            draft::remove(&saved)?;
        }
    }
    // An uninstallation that was killed above, or an installation, has left both files.
    for single in directory.files(&["conf", "json"])? {
        let list = single.with_extension("conflist");
        let Ok(original) = fs::read_to_string(&single) else { continue };
        if fs::read_to_string(&list).is_ok_and(|present| is_made_from(&present, &original)) {
            draft::remove(&list)?;
        }
    }
    Ok(())
}

fn saved(single: &Path) -> PathBuf {
    let mut name = single.as_os_str().to_owned();
    name.push(".");
    name.push(SAVED);
    name.into()
}

fn as_list(single: &str, version: &str, entry: &str) -> String {
    let name: Option<Value> =
        serde_json::from_str::<Value>(single).ok().and_then(|single| single.get("name").cloned());
    let name = name.unwrap_or_default();
    let version = Value::from(version);
    format!(
        "{{\n  \"cniVersion\": {version},\n  \"name\": {name},\n  \"plugins\": [\n    {},\n    {entry}\n  ]\n}}\n",
        single.trim()
    )
}

/// Returns whether a list has nothing but the plugin of a single file and our entry.
fn is_made_from(list: &str, single: &str) -> bool {
    let value = |text: &str| serde_json::from_str::<Value>(text).ok();
    List::parse(list).is_ok_and(|list| {
        let [first, _] = list.plugins() else { return false };
        list.has_entry() && value(first.get()) == value(single)
    })
}
