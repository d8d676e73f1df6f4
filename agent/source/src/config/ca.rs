//! `ca:` of the agent's configuration: who issues certificates.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_saphyr::{Location, Spanned};

use crate::{FileError, Problem, yaml};

/// `sun_path` holds 108 bytes with the terminating zero (unix(7)).
const MAX_SOCKET_PATH_BYTES: usize = 107;
/// The shortest lifetime that may be asked for.
const MIN_TTL: Duration = Duration::from_mins(1);
const MAX_TTL: Duration = Duration::from_hours(24 * 366);
/// Where Istio's charts mount the projected token.
const DEFAULT_TOKEN: &str = "/var/run/secrets/tokens/istio-token";
const DEFAULT_CLUSTER: &str = "Kubernetes";

/// Who issues certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaConfig {
    /// A CA within the agent, made on first start.
    Embedded {
        /// Where its key and certificate are; `<stateDir>/ca` by default.
        dir: PathBuf,
    },
    /// A CA whose key the operator provides.
    Pem {
        /// Certificate of the issuing CA, PEM.
        certificate: PathBuf,
        /// Its key, PEM.
        key: PathBuf,
        /// The roots that peers are verified against, PEM.
        roots: PathBuf,
    },
    /// A CA that speaks Istio's protocol: `sluice controller`, istiod, istio-csr.
    Istio(IstioConfig),
    /// A SPIRE agent on the node.
    Spire {
        /// Its admin socket.
        socket: PathBuf,
    },
}

/// How a CA that speaks Istio's protocol is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IstioConfig {
    /// `https://host:port`.
    pub address: String,
    /// The name in the server's certificate, if not the host of `address`.
    pub server_name: Option<String>,
    /// The roots that the server is verified against, PEM; peers too, unless `trust.roots` says otherwise.
    pub root_cert: PathBuf,
    /// The bearer token, read for each request.
    pub token: PathBuf,
    /// What Istio calls the cluster; `Kubernetes` by default.
    pub cluster_id: String,
    /// Whether the identity is named in the request's metadata; true by default.
    pub impersonate: bool,
    /// Whether the roots that the CA sends along are believed too; false by default.
    pub roots_from_ca: bool,
}

type Field<T> = Option<Spanned<T>>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenCa {
    mode: Spanned<String>,
    #[serde(default)]
    ttl: Field<String>,
    #[serde(default)]
    dir: Field<PathBuf>,
    #[serde(default)]
    certificate: Field<PathBuf>,
    #[serde(default)]
    key: Field<PathBuf>,
    #[serde(default)]
    roots: Field<PathBuf>,
    #[serde(default)]
    address: Field<String>,
    #[serde(default)]
    server_name: Field<String>,
    #[serde(default)]
    root_cert: Field<PathBuf>,
    #[serde(default)]
    token: Field<PathBuf>,
    #[serde(default)]
    cluster_id: Field<String>,
    #[serde(default)]
    impersonate: Field<bool>,
    #[serde(default)]
    roots_from_ca: Field<bool>,
    #[serde(default)]
    socket: Field<PathBuf>,
}

/// The place in the file that `ca:` is read from.
struct Reader<'a> {
    file: &'a Path,
    directory: &'a Path,
    at: Location,
}

/// Reads `ca:`. Returns the CA and the lifetime to ask for; paths are relative to `directory`.
pub(super) fn read(
    file: &Path,
    directory: &Path,
    state_dir: &Path,
    ca: Option<Spanned<WrittenCa>>,
) -> Result<(CaConfig, Option<Duration>), FileError> {
    let own_dir = state_dir.join("ca");
    let Some(Spanned { value: ca, referenced: at, .. }) = ca else {
        return Ok((CaConfig::Embedded { dir: own_dir }, None));
    };
    let reader = Reader { file, directory, at };
    let allowed: &[&str] = match ca.mode.value.as_str() {
        "embedded" => &["dir", "ttl"],
        "pem" => &["certificate", "key", "roots", "ttl"],
        "istio" => &[
            "address",
            "serverName",
            "rootCert",
            "token",
            "clusterId",
            "impersonate",
            "rootsFromCa",
            "ttl",
        ],
        "spire" => &["socket"],
        other => {
            let problem = Problem::CaMode(other.to_owned());
            return Err(yaml::content(file, ca.mode.referenced, "ca.mode", problem));
        }
    };
    let foreign = ca.written().into_iter().find(|(name, _)| !allowed.contains(name));
    if let Some((name, at)) = foreign {
        let problem = Problem::ForeignCaField(ca.mode.value);
        return Err(reader.refuse(at, name, problem));
    }
    let ttl = ca.ttl.as_ref().map(|ttl| reader.lifetime(ttl)).transpose()?;
    let config = match ca.mode.value.as_str() {
        "pem" => CaConfig::Pem {
            certificate: reader.path("certificate", ca.certificate, PEM_NEEDS)?,
            key: reader.path("key", ca.key, PEM_NEEDS)?,
            roots: reader.path("roots", ca.roots, PEM_NEEDS)?,
        },
        "istio" => CaConfig::Istio(reader.istio(ca)?),
        "spire" => CaConfig::Spire { socket: reader.socket(ca.socket)? },
        _ => CaConfig::Embedded { dir: ca.dir.map_or(own_dir, |dir| directory.join(dir.value)) },
    };
    Ok((config, ttl))
}

const PEM_NEEDS: &str = "ca.mode pem needs certificate, key and roots";
const ISTIO_NEEDS: &str = "ca.mode istio needs address and rootCert";
const SPIRE_NEEDS: &str = "ca.mode spire needs socket, the SPIRE agent's admin socket";

// === impl WrittenCa ===

impl WrittenCa {
    /// Returns the fields that were written, apart from `mode`.
    fn written(&self) -> Vec<(&'static str, Location)> {
        fn at<T>(field: Option<&Spanned<T>>) -> Option<Location> {
            field.map(|field| field.referenced)
        }
        let fields = [
            ("ttl", at(self.ttl.as_ref())),
            ("dir", at(self.dir.as_ref())),
            ("certificate", at(self.certificate.as_ref())),
            ("key", at(self.key.as_ref())),
            ("roots", at(self.roots.as_ref())),
            ("address", at(self.address.as_ref())),
            ("serverName", at(self.server_name.as_ref())),
            ("rootCert", at(self.root_cert.as_ref())),
            ("token", at(self.token.as_ref())),
            ("clusterId", at(self.cluster_id.as_ref())),
            ("impersonate", at(self.impersonate.as_ref())),
            ("rootsFromCa", at(self.roots_from_ca.as_ref())),
            ("socket", at(self.socket.as_ref())),
        ];
        fields.into_iter().filter_map(|(name, at)| Some((name, at?))).collect()
    }
}

// === impl Reader ===

impl Reader<'_> {
    fn refuse(&self, at: Location, name: &str, problem: Problem) -> FileError {
        yaml::content(self.file, at, format!("ca.{name}"), problem)
    }

    fn needed<T>(
        &self,
        name: &str,
        field: Field<T>,
        needs: &'static str,
    ) -> Result<Spanned<T>, FileError> {
        field.ok_or_else(|| self.refuse(self.at, name, Problem::CaNeeds(needs)))
    }

    fn path(
        &self,
        name: &str,
        field: Field<PathBuf>,
        needs: &'static str,
    ) -> Result<PathBuf, FileError> {
        Ok(self.directory.join(self.needed(name, field, needs)?.value))
    }

    fn istio(&self, ca: WrittenCa) -> Result<IstioConfig, FileError> {
        let address = self.needed("address", ca.address, ISTIO_NEEDS)?;
        if !is_https(&address.value) {
            let problem = Problem::CaAddress(address.value);
            return Err(self.refuse(address.referenced, "address", problem));
        }
        let visible = |name: &str, field: Field<String>| match field {
            Some(Spanned { value, referenced, .. }) if !is_visible(&value) => {
                Err(self.refuse(referenced, name, Problem::NotVisibleAscii(value)))
            }
            field => Ok(field.map(|field| field.value)),
        };
        let token = ca.token.map_or_else(|| DEFAULT_TOKEN.into(), |token| token.value);
        Ok(IstioConfig {
            address: address.value,
            server_name: visible("serverName", ca.server_name)?,
            root_cert: self.path("rootCert", ca.root_cert, ISTIO_NEEDS)?,
            token: self.directory.join(token),
            cluster_id: visible("clusterId", ca.cluster_id)?
                .unwrap_or_else(|| DEFAULT_CLUSTER.to_owned()),
            impersonate: ca.impersonate.is_none_or(|field| field.value),
            roots_from_ca: ca.roots_from_ca.is_some_and(|field| field.value),
        })
    }

    fn socket(&self, field: Field<PathBuf>) -> Result<PathBuf, FileError> {
        let Spanned { value, referenced, .. } = self.needed("socket", field, SPIRE_NEEDS)?;
        let socket = self.directory.join(value);
        if socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
            return Err(self.refuse(referenced, "socket", Problem::SocketPathTooLong(socket)));
        }
        Ok(socket)
    }

    fn lifetime(&self, field: &Spanned<String>) -> Result<Duration, FileError> {
        match duration(&field.value) {
            Some(ttl) if (MIN_TTL..=MAX_TTL).contains(&ttl) => Ok(ttl),
            _ => Err(self.refuse(field.referenced, "ttl", Problem::Lifetime(field.value.clone()))),
        }
    }
}

/// Parses a duration: `90s`, `10m`, `24h` or several of them (`1h30m`).
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, after) = rest.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let mut units = after.chars();
        let seconds = match units.next()? {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            _ => return None,
        };
        total = total.checked_add(Duration::from_secs(number.checked_mul(seconds)?))?;
        rest = units.as_str();
    }
    (!text.is_empty()).then_some(total)
}

/// Returns whether `text` is `https://` with a host and, perhaps, a port, and at most a slash after it.
fn is_https(text: &str) -> bool {
    let Some(authority) = text.strip_prefix("https://") else { return false };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host_is_good = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(&b))
        }
    };
    host_is_good && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

fn is_visible(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic())
}

#[cfg(test)]
mod tests;
