//! The command line, read by hand: a parser would double the plugin's size.

use std::{ffi::OsString, path::PathBuf};

use super::{Entry, InstallError};
use crate::DEFAULT_SOCKET;

/// The installer's usage text.
pub const USAGE: &str = "\
usage: sluice-cni install | watch | keep-out | look | uninstall [OPTIONS]

  install     put the plugin and its entry in place; if there is no network list yet, leave that to watch
  watch       the same, and keep it so
  keep-out    take the entry out, as uninstall does, and keep it out
  look        change nothing, and print as JSON what is in place
  uninstall   take the entry out again; the binary stays and lets every call succeed

  --config-dir DIR         network lists [/etc/cni/net.d]
  --bin-dir DIR            plugins' binaries [/opt/cni/bin]
  --binary FILE            the plugin to copy [this program]
  --socket PATH            the agent's socket, as the node sees it [/run/sluice/cni.sock]
  --exclude-namespace NS   its pods start without asking the agent (repeatable)
  --own-pod NS/PREFIX      pods that start without asking, by the beginning of the name (repeatable)
  --runtime VERSION        containerRuntimeVersion of the node, e.g. containerd://2.1.0; if that one reads
                           drop-ins, no file of others is changed

Without a command it is the plugin: a container runtime calls it with CNI_COMMAND set.";

/// Where things are on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The directory of network lists.
    pub config_dir: PathBuf,
    /// The directory of plugins.
    pub bin_dir: PathBuf,
    /// The plugin that is copied there.
    pub binary: PathBuf,
    /// The node's container runtime; empty when not known.
    pub runtime: String,
    /// What is entered in the list.
    pub entry: Entry,
}

/// Reads the arguments after the command.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Options, InstallError> {
    let mut options = Options {
        config_dir: "/etc/cni/net.d".into(),
        bin_dir: "/opt/cni/bin".into(),
        binary: "/proc/self/exe".into(),
        runtime: String::new(),
        entry: Entry {
            socket: DEFAULT_SOCKET.into(),
            exclude_namespaces: Vec::new(),
            own_pods: Vec::new(),
        },
    };
    let refuse = |why: String| Err(InstallError::Usage(why));
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        let name = name.to_string_lossy().into_owned();
        let Some(value) = arguments.next() else {
            return refuse(format!("{name:?} is not an option, or lacks its value"));
        };
        let text = value.to_string_lossy().into_owned();
        match name.as_str() {
            "--config-dir" => options.config_dir = value.into(),
            "--bin-dir" => options.bin_dir = value.into(),
            "--binary" => options.binary = value.into(),
            "--runtime" => options.runtime = text,
            "--socket" if text.starts_with('/') => options.entry.socket = value.into(),
            "--socket" => return refuse(format!("--socket must be absolute, not {text:?}")),
            "--exclude-namespace" => options.entry.exclude_namespaces.push(text),
            "--own-pod" => match text.split_once('/') {
                Some((namespace, prefix)) if !namespace.is_empty() && !prefix.is_empty() => {
                    options.entry.own_pods.push((namespace.to_owned(), prefix.to_owned()));
                }
                _ => return refuse(format!("--own-pod must be NAMESPACE/PREFIX, not {text:?}")),
            },
            _ => return refuse(format!("{name:?} is not an option")),
        }
    }
    Ok(options)
}
