//! Puts the plugin where runtimes find it, and its entry where they read it; takes the entry out and retires the plugin
//! when Sluice is uninstalled.
//!
//! The rules, each learnt the hard way on somebody's node:
//!
//! - Nobody ever sees a file of others half written: a draft in the same directory, fsync, rename, fsync of the
//!   directory.
//! - Nothing but our own entry changes, to the byte: lists are edited as text (see [`list`]).
//! - There is no list of our own. Without a main plugin there is nothing to chain to, so we wait.
//! - The binary is in place before the first list names it, and stays after the last one has let go of it: runtimes
//!   keep the configuration of running sandboxes, and call DEL with it when those end.

mod binary;
mod directory;
mod draft;
mod dropin;
mod entry;
mod list;
mod look;
mod options;
mod single;
mod watch;

use std::{
    io,
    path::{Path, PathBuf},
};

use self::{
    binary::Binary,
    directory::{Directory, Source},
};
pub use self::{
    binary::is_retired,
    entry::Entry,
    look::look,
    options::{Options, USAGE, parse},
    watch::{Level, keep_out, watch},
};

/// Why something could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file or directory.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A list that the plugin would break.
    #[error(
        "{} is of CNI {version}, which the plugin does not speak ({:?}): have the main plugin write a newer \
         `cniVersion`",
        path.display(),
        crate::plugin::SUPPORTED
    )]
    Version {
        /// The list.
        path: PathBuf,
        /// The CNI version that it asks for.
        version: String,
    },
    /// None of a list's plugins is where ours would be: the runtime reads its plugins elsewhere, and with an entry
    /// that it cannot follow it would make no pod's network any more.
    #[error(
        "none of the plugins that {} names ({}) is in {}: with Sluice entered there, the runtime would look for it in \
         vain and start no pod; set cni.binDir (--bin-dir) to the directory that the runtime reads",
        list.display(),
        plugins.join(", "),
        bin_dir.display()
    )]
    BinDir {
        /// The list.
        list: PathBuf,
        /// What it names.
        plugins: Vec<String>,
        /// Where our binary is.
        bin_dir: PathBuf,
    },
    /// The same network in two files.
    #[error(
        "{} and {} both exist: remove the one that is not in use",
        single.display(),
        list.display()
    )]
    TwoForms {
        /// The file with one plugin.
        single: PathBuf,
        /// The file with a list of them.
        list: PathBuf,
    },
    /// The arguments do not make sense.
    #[error("{0}\n{USAGE}")]
    Usage(String),
}

/// The result of an installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// The entry is in place.
    InPlace {
        /// The file that the entry is in.
        file: PathBuf,
        /// Whether the file had to be written.
        changed: bool,
        /// The `type` of the main plugin.
        main: String,
    },
    /// There is no list yet to put the entry in.
    Waiting,
}

/// Installs or upgrades the binary, then puts the entry in the list. Doing so again changes nothing.
pub fn install(options: &Options) -> Result<Installed, InstallError> {
    Binary::new(&options.bin_dir).put_in_place(&options.binary)?;
    enter(options)
}

/// Puts the entry in the list; the binary must be in place.
fn enter(options: &Options) -> Result<Installed, InstallError> {
    let directory = Directory::new(&options.config_dir);
    directory.remove_stale_drafts()?;
    let Some(source) = directory.first_valid()? else { return Ok(Installed::Waiting) };
    check_bin_dir(&source, &options.bin_dir)?;
    let entry = options.entry.to_json();
    let installed = if dropin::is_usable(&options.runtime, &source) {
        dropin::enter(&directory, &source, &entry)?
    } else {
        match &source {
            Source::List(file) => directory::enter_list(file, &entry)?,
            Source::Single(file) => single::enter(&directory, file, &entry)?,
        }
    };
    if let Installed::InPlace { file, .. } = &installed {
        directory.leave_all_but(Some(file))?;
    }
    Ok(installed)
}

/// Makes sure that the runtime finds our binary where we put it: beside at least one of the others.
fn check_bin_dir(source: &Source, bin_dir: &Path) -> Result<(), InstallError> {
    let plugins = source.others();
    if plugins.iter().any(|kind| bin_dir.join(kind).exists()) {
        return Ok(());
    }
    let (list, bin_dir) = (source.path().to_owned(), bin_dir.to_owned());
    Err(InstallError::BinDir { list, plugins, bin_dir })
}

/// Takes the entry out of every list, and leaves a binary that answers whoever still remembers it.
pub fn uninstall(options: &Options) -> Result<(), InstallError> {
    let directory = Directory::new(&options.config_dir);
    directory.remove_stale_drafts()?;
    single::leave(&directory)?;
    directory.leave_all_but(None)?;
    Binary::new(&options.bin_dir).retire()
}

#[cfg(test)]
mod tests;
