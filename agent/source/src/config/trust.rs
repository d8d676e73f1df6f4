//! `trust:` of the agent's configuration: which files say who is believed.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_saphyr::Spanned;
use sluice_spiffe::TrustDomain;

use crate::{FileError, Problem, yaml};

/// The files that say who is believed. All of them are followed while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustConfig {
    /// Roots of the mesh's own trust domain (PEM), instead of those that the CA names.
    pub roots: Option<PathBuf>,
    /// Roots of other trust domains whose workloads are believed too (PEM).
    pub federated: Vec<(TrustDomain, PathBuf)>,
    /// Revocation lists, PEM or DER; a directory stands for its files.
    pub crls: Vec<PathBuf>,
    /// A YAML list of SPIFFE identities that nobody talks to; an entry that ends with `*` is a prefix.
    pub denied: Option<PathBuf>,
    /// What to do about a revocation list that is out of date.
    pub crl_policy: StaleCrls,
}

/// What to do about a revocation list that is out of date or cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StaleCrls {
    /// `keepLastGood`: the last good one stays in force, with a warning.
    #[default]
    KeepLastGood,
    /// `refuse`: nobody whom the list could be about is believed.
    Refuse,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WrittenTrust {
    #[serde(default)]
    roots: Option<PathBuf>,
    #[serde(default)]
    federated: Vec<WrittenFederated>,
    #[serde(default)]
    crls: Vec<PathBuf>,
    #[serde(default)]
    denied: Option<PathBuf>,
    #[serde(default)]
    crl_policy: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WrittenFederated {
    trust_domain: Spanned<String>,
    roots: PathBuf,
}

/// Checks what was written; paths are relative to `directory`.
pub(super) fn read(
    file: &Path,
    directory: &Path,
    own: &TrustDomain,
    written: Option<WrittenTrust>,
) -> Result<TrustConfig, FileError> {
    let Some(written) = written else { return Ok(TrustConfig::default()) };
    let mut federated: Vec<(TrustDomain, PathBuf)> = Vec::new();
    for (index, entry) in written.federated.into_iter().enumerate() {
        let Spanned { value, referenced: at, .. } = entry.trust_domain;
        let field = || format!("trust.federated[{index}].trustDomain");
        let domain: TrustDomain = value
            .parse()
            .map_err(|error| yaml::content(file, at, field(), Problem::NotATrustDomain(error)))?;
        if domain == *own || federated.iter().any(|(known, _)| *known == domain) {
            let problem = Problem::TrustDomainTaken(domain);
            return Err(yaml::content(file, at, field(), problem));
        }
        federated.push((domain, directory.join(entry.roots)));
    }
    let crl_policy = match written.crl_policy {
        None => StaleCrls::default(),
        Some(Spanned { value, referenced, .. }) => match value.as_str() {
            "keepLastGood" => StaleCrls::KeepLastGood,
            "refuse" => StaleCrls::Refuse,
            _ => {
                let problem = Problem::CrlPolicy(value);
                return Err(yaml::content(file, referenced, "trust.crlPolicy", problem));
            }
        },
    };
    let join = |path: PathBuf| directory.join(path);
    Ok(TrustConfig {
        roots: written.roots.map(join),
        federated,
        crls: written.crls.into_iter().map(join).collect(),
        denied: written.denied.map(join),
        crl_policy,
    })
}
