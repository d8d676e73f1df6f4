//! What a runtime writes to standard input: our entry of the list, and what the runtime adds to it.

use std::{net::IpAddr, path::PathBuf};

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{
    SUPPORTED,
    failure::{Code, Failure},
    variables::is_name,
};
use crate::{DEFAULT_SOCKET, json::Members, protocol::AttachmentId};

/// The configuration of one call. Fields that we do not know are somebody else's, and ignored.
#[derive(Debug)]
pub(crate) struct Config<'a> {
    members: Members<'a>,
    pub(crate) version: &'static str,
    pub(crate) network: String,
    pub(crate) socket: PathBuf,
    exempt: Exempt,
}

/// Pods that start whether or not there is an agent.
#[derive(Debug, Default)]
struct Exempt {
    namespaces: Vec<String>,
    own_pods: Vec<OwnPods>,
}

/// Pods without which no agent would ever come up.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct OwnPods {
    pub(crate) namespace: String,
    pub(crate) name_prefix: String,
}

/// The parts of a result that we read.
#[derive(Deserialize)]
struct PreviousResult {
    #[serde(default)]
    interfaces: Vec<Interface>,
    #[serde(default)]
    ips: Vec<Ip>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Ip {
    address: String,
    #[serde(default)]
    interface: Option<usize>,
}

/// Returns the version that the text asks for, if it can be read at all.
pub(crate) fn version_in(text: &str) -> Option<String> {
    Members::parse(text).ok()?.get("cniVersion").ok()?
}

// === impl Config ===

impl<'a> Config<'a> {
    pub(crate) fn parse(text: &'a str) -> Result<Self, Failure> {
        let members = Members::parse(text).map_err(|error| {
            Failure::new(Code::Decoding, "standard input is not a JSON object", error)
        })?;
        let network: Option<String> = field(&members, "name")?;
        let network = network.filter(|name| is_name(name)).ok_or_else(|| {
            let why =
                "`name` must begin with a letter or digit, and have only these and _ . - in it";
            Failure::new(Code::InvalidConfiguration, "missing or invalid network name", why)
        })?;
        // By the specification a configuration without a version is of 0.1.0.
        let asked = field::<String>(&members, "cniVersion")?.unwrap_or_else(|| "0.1.0".to_owned());
        let version = SUPPORTED.into_iter().find(|version| *version == asked).ok_or_else(|| {
            let why = format!("the configuration is {asked}, the plugin speaks {SUPPORTED:?}");
            Failure::new(Code::IncompatibleVersion, "incompatible CNI versions", why)
        })?;
        let socket = field(&members, "socket")?.unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
        if socket.is_relative() {
            let why = format!("`socket` must be an absolute path, not {}", socket.display());
            return Err(Failure::new(Code::InvalidConfiguration, "invalid socket", why));
        }
        let exempt = Exempt {
            namespaces: field(&members, "excludeNamespaces")?.unwrap_or_default(),
            own_pods: field(&members, "ownPods")?.unwrap_or_default(),
        };
        Ok(Self { members, version, network, socket, exempt })
    }

    /// Fails unless the configuration is of `least` or newer: older ones do not have the command.
    pub(crate) fn require(&self, least: &str, command: &str) -> Result<(), Failure> {
        let place = |wanted: &str| SUPPORTED.iter().position(|version| *version == wanted);
        if place(self.version) >= place(least) {
            return Ok(());
        }
        let why = format!("{command} came with {least}, the configuration is {}", self.version);
        Err(Failure::new(Code::IncompatibleVersion, format!("no {command} in this version"), why))
    }

    /// Returns the result of the plugins before us, as it is to be passed on.
    pub(crate) fn previous_result(&self) -> Result<String, Failure> {
        let raw = self.previous()?;
        let refuse = |why: String| {
            Err(Failure::new(Code::InvalidConfiguration, "prevResult cannot be passed on", why))
        };
        let members = match Members::parse(raw.get()) {
            Ok(members) => members,
            Err(error) => return refuse(format!("`prevResult` is not an object: {error}")),
        };
        match members.get::<String>("cniVersion") {
            Ok(Some(version)) if version == self.version => Ok(raw.get().to_owned()),
            Ok(Some(version)) if family(&version) != family(self.version) => {
                refuse(format!("it is a result of {version}, and {} was asked for", self.version))
            }
            Ok(_) => Ok(members.with_string("cniVersion", self.version)),
            Err(error) => refuse(format!("`prevResult.cniVersion`: {error}")),
        }
    }

    /// Returns the addresses inside the sandbox; none when there is no result that we understand.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let result = self.previous().ok();
        let parsed = result.and_then(|raw| serde_json::from_str(raw.get()).ok());
        let Some(PreviousResult { interfaces, ips }) = parsed else { return Vec::new() };
        let inside = |ip: &&Ip| match ip.interface.and_then(|index| interfaces.get(index)) {
            Some(interface) => !interface.sandbox.is_empty(),
            None => true,
        };
        let bare = |ip: &Ip| ip.address.split('/').next().and_then(|text| text.parse().ok());
        ips.iter().filter(inside).filter_map(bare).collect()
    }

    fn previous(&self) -> Result<&'a RawValue, Failure> {
        self.members.raw("prevResult").filter(|raw| raw.get() != "null").ok_or_else(|| {
            let why = "`prevResult` is missing: put the plugin at the end of a list, after the one that \
                       makes the interface";
            Failure::new(Code::InvalidConfiguration, "the plugin must be chained", why)
        })
    }

    /// Returns what GC is to keep. A missing list must not be taken for an empty one, which would remove everything.
    /// libcni also sends the list under a name that the specification does not have.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<AttachmentId>, Failure> {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            if let Some(valid) = field(&self.members, key)? {
                return Ok(valid);
            }
        }
        let why = "`cni.dev/valid-attachments` is missing, so nothing was removed";
        Err(Failure::new(Code::InvalidConfiguration, "no list of valid attachments", why))
    }

    pub(crate) fn exempts(&self, namespace: &str, name: &str) -> bool {
        let own = |pods: &OwnPods| {
            pods.namespace == namespace && name.starts_with(pods.name_prefix.as_str())
        };
        self.exempt.namespaces.iter().any(|excluded| excluded == namespace)
            || self.exempt.own_pods.iter().any(own)
    }
}

/// Returns the family of a version; results of one family have the same form.
fn family(version: &str) -> Option<u8> {
    match version {
        "0.3.0" | "0.3.1" | "0.4.0" => Some(0),
        "1.0.0" | "1.1.0" => Some(1),
        _ => None,
    }
}

fn field<T: serde::de::DeserializeOwned>(
    members: &Members<'_>,
    key: &str,
) -> Result<Option<T>, Failure> {
    members.get(key).map_err(|error| {
        Failure::new(Code::InvalidConfiguration, format!("invalid `{key}`"), error)
    })
}
