//! Looks at what is installed, without changing anything.

use serde_json::{Value, json};

use super::{
    InstallError, Options,
    binary::Binary,
    directory::{Directory, Source},
    dropin,
    list::List,
};

/// Returns, as JSON for programs, the file that runtimes take and whether the plugin is chained in it. `file` is null
/// while there is none, `main` (the main plugin) while there is no list; `entered` and `binary` say whether the entry
/// and the program that it names are there.
///
/// # Errors
///
/// When the directory of lists cannot be read.
pub fn look(options: &Options) -> Result<Value, InstallError> {
    let directory = Directory::new(&options.config_dir);
    let binary = Binary::new(&options.bin_dir).is_in_place();
    let source = directory.first_valid()?;
    let (file, main, entered) = match &source {
        None => (None, None, false),
        Some(Source::Single(file)) => (Some(&file.path), None, false),
        Some(Source::List(file)) => match List::parse(&file.text) {
            Ok(list) => {
                let entered = list.has_entry() || dropin::is_entered(&directory, &list);
                (Some(&file.path), list.main_plugin(), entered)
            }
            Err(_) => (Some(&file.path), None, false),
        },
    };
    let file = file.map(|file| file.display().to_string());
    Ok(json!({ "file": file, "main": main, "entered": entered, "binary": binary }))
}
