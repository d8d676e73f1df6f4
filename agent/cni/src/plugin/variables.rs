//! The `CNI_*` variables, checked as the specification and its reference implementation do.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::failure::{Code, Failure};
use crate::protocol::{AttachmentId, PodName};

/// `IFNAMSIZ` without the terminating zero.
const MAX_INTERFACE_BYTES: usize = 15;

/// Reads one variable.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The command that is to be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

// === impl Command ===

impl Command {
    pub(crate) fn read(variables: Variables<'_>) -> Result<Self, Failure> {
        match text(variables, "CNI_COMMAND")?.as_deref() {
            Some("ADD") => Ok(Self::Add),
            Some("DEL") => Ok(Self::Del),
            Some("CHECK") => Ok(Self::Check),
            Some("STATUS") => Ok(Self::Status),
            Some("GC") => Ok(Self::Gc),
            Some("VERSION") => Ok(Self::Version),
            None => Err(missing(&["CNI_COMMAND"])),
            Some(other) => Err(invalid(
                "CNI_COMMAND",
                format!("{other:?} is none of ADD, DEL, CHECK, STATUS, GC and VERSION"),
            )),
        }
    }

    /// Returns whether the command cannot do without the attachment's namespace.
    fn needs_netns(self) -> bool {
        matches!(self, Self::Add | Self::Check)
    }
}

/// What the variables say about one attachment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) id: AttachmentId,
    pub(crate) netns: Option<PathBuf>,
    pub(crate) pod: Option<PodName>,
}

// === impl Target ===

impl Target {
    /// Reads the variables of an attachment; an error names all that are missing. `CNI_PATH` is not needed: we start no
    /// other plugin, and the specification calls it optional.
    pub(crate) fn read(command: Command, variables: Variables<'_>) -> Result<Self, Failure> {
        let container = text(variables, "CNI_CONTAINERID")?;
        let interface = text(variables, "CNI_IFNAME")?;
        let netns = text(variables, "CNI_NETNS")?;
        let absent = [
            ("CNI_CONTAINERID", container.is_none()),
            ("CNI_IFNAME", interface.is_none()),
            ("CNI_NETNS", netns.is_none() && command.needs_netns()),
        ];
        let absent: Vec<_> = absent.iter().filter(|(_, is)| *is).map(|(name, _)| *name).collect();
        let (Some(container), Some(interface), true) = (container, interface, absent.is_empty())
        else {
            return Err(missing(&absent));
        };
        if !is_name(&container) {
            return Err(invalid("CNI_CONTAINERID", format!("{container:?} is not a valid name")));
        }
        check_interface(&interface)?;
        let netns = match (netns, command.needs_netns()) {
            (Some(path), true) => Some(checked_netns(Path::new(&path))?),
            // After the sandbox's end the path may lead nowhere, which is no reason to fail.
            (Some(path), false) => Some(fs::canonicalize(&path).unwrap_or_else(|_| path.into())),
            (None, _) => None,
        };
        let pod = match pod(variables) {
            Err(failure) if command.needs_netns() => return Err(failure),
            pod => pod.ok().flatten(),
        };
        Ok(Self { id: AttachmentId { container, interface }, netns, pod })
    }
}

/// Returns whether a text can be a container's ID or a network's name: a letter or digit, then also `_`, `.` and `-`.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn check_interface(name: &str) -> Result<(), Failure> {
    let refused = |c: char| c == '/' || c == ':' || c.is_whitespace();
    if name.len() > MAX_INTERFACE_BYTES || name == "." || name == ".." || name.contains(refused) {
        let why = format!("{name:?} is not a name that Linux takes for an interface");
        return Err(invalid("CNI_IFNAME", why));
    }
    Ok(())
}

/// Returns the path without links: it then means the same to an agent with other mounts. Refuses the plugin's own
/// namespace, which is the node's: no pod of the mesh has that.
fn checked_netns(path: &Path) -> Result<PathBuf, Failure> {
    let failed = |error| invalid("CNI_NETNS", format!("{}: {error}", path.display()));
    if !path.is_absolute() {
        return Err(invalid("CNI_NETNS", format!("{} is not an absolute path", path.display())));
    }
    let found = fs::metadata(path).map_err(failed)?;
    let own = fs::metadata("/proc/self/ns/net").map_err(failed)?;
    if (found.dev(), found.ino()) == (own.dev(), own.ino()) {
        let why = format!("{} is the plugin's own network namespace", path.display());
        return Err(invalid("CNI_NETNS", why));
    }
    // A link of /proc is kept: what it leads to has no path.
    Ok(if path.starts_with("/proc") {
        path.to_owned()
    } else {
        fs::canonicalize(path).map_err(failed)?
    })
}

/// Reads `K8S_POD_*` of `CNI_ARGS`, which every Kubernetes runtime gives.
fn pod(variables: Variables<'_>) -> Result<Option<PodName>, Failure> {
    let Some(arguments) = text(variables, "CNI_ARGS")? else { return Ok(None) };
    let (mut namespace, mut name, mut uid) = (None, None, None);
    for pair in arguments.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(invalid("CNI_ARGS", format!("{pair:?} is not KEY=VALUE")));
        };
        let place = match key {
            "K8S_POD_NAMESPACE" => &mut namespace,
            "K8S_POD_NAME" => &mut name,
            "K8S_POD_UID" => &mut uid,
            _ => continue,
        };
        *place = Some(value.to_owned()).filter(|value| !value.is_empty());
    }
    let (Some(namespace), Some(name)) = (namespace, name) else { return Ok(None) };
    Ok(Some(PodName { namespace, name, uid }))
}

/// Reads a variable; an empty one counts as missing.
fn text(variables: Variables<'_>, name: &str) -> Result<Option<String>, Failure> {
    match variables(name).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value).filter(|value| !value.is_empty())),
        Some(Err(_)) => Err(invalid(name, "it is not UTF-8".to_owned())),
    }
}

fn missing(names: &[&str]) -> Failure {
    let names = names.join(", ");
    let details = "a container runtime sets them (CNI specification, section 2)";
    Failure::new(Code::InvalidEnvironment, format!("required variables missing: {names}"), details)
}

fn invalid(name: &str, why: String) -> Failure {
    Failure::new(Code::InvalidEnvironment, format!("invalid {name}"), why)
}
